"""The batch that draws fastest on an engine, found by trying."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emfast.synthesis.denoiser import Generator
from emfast.synthesis.manifest import JOB
from engines.errors import UserError

AUTO = "auto"
# Largest batch that is tried.
MOST = 64
# Steps of the first draw at a batch, in which engines set themselves up, and of the timed one.
SETTLING_STEPS = 4
TIMED_STEPS = 8
# A larger batch is taken if it is faster by more than this share: it costs memory, and a set that
# it does not divide draws images that nobody wants.
GAIN = 0.02


@dataclass(frozen=True)
class Trial:
    """How fast a batch is.

    Attributes:
        batch: images that were drawn together.
        seconds: for one step of one image; None for what did not run.
        reason: why it did not.
    """

    batch: int
    seconds: float | None
    reason: str = ""

    def __str__(self) -> str:
        told = (
            self.reason if self.seconds is None else f"{1e3 * self.seconds:.3g} ms a step and image"
        )
        return f"batch {self.batch}: {told}"


def parse_batch(text: str) -> int | None:
    """The batch that ``--batch`` names; None for "auto"."""
    if text == AUTO:
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UserError(f"--batch {text}: give a number of images from 1, or {AUTO}")


def recorded_batch(folder: Path) -> int | None:
    """The batch that a set was begun with, on an engine where it decides the images' bytes."""
    try:
        batch = json.loads((folder / JOB).read_text())["batch"]
    except (OSError, ValueError, KeyError, TypeError):  # run_job tells what is wrong with it
        return None
    return batch if isinstance(batch, int) else None


def fastest_batch(
    generator: Generator,
    size: tuple[int, int],
    most: int = MOST,
    tell: Callable[[Trial], None] | None = None,
) -> int:
    """The batch, a power of two, that draws most images in a second.

    Larger ones are tried until two in a row are no faster, or one does not fit in the memory.

    Args:
        generator: the denoiser on its engine.
        size: height and width in pixels.
        most: largest batch to try.
        tell: called with each trial.

    Raises:
        UserError: not even one image can be drawn.
    """
    best, fastest, slower, batch = 0, float("inf"), 0, 1
    while batch <= most and slower < 2:
        trial = _try(generator, batch, size)
        if tell is not None:
            tell(trial)
        if trial.seconds is None:
            break
        if trial.seconds < (1 - GAIN) * fastest:
            best, fastest, slower = batch, trial.seconds, 0
        else:
            slower += 1
        batch *= 2
    if best == 0:
        raise UserError(f"no batch can be drawn: {trial}")
    return best


def _try(generator: Generator, batch: int, size: tuple[int, int]) -> Trial:
    try:
        if generator.prepare(batch, size).full:
            return Trial(batch, None, "does not fit in the device's memory")
        generator.draw(range(batch), 0, min(SETTLING_STEPS, generator.spec.schedule.steps), size)
        steps = min(TIMED_STEPS, generator.spec.schedule.steps)
        start = time.perf_counter()
        generator.draw(range(batch), 0, steps, size)
        return Trial(batch, (time.perf_counter() - start) / (steps * batch))
    except MemoryError:
        return Trial(batch, None, "does not fit in the memory")
    except UserError as error:
        return Trial(batch, None, str(error))
