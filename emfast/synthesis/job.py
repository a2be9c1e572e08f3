"""A set of labelled images as a job: it can be killed, taken up again, shared and made larger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emfast.diffusion.noise import check_seed
from emfast.progress import Advance, progress
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.description import describe, device_name
from emfast.synthesis.folder import SetFolder
from emfast.synthesis.shard import Shard
from emfast.synthesis.writer import SetWriter
from engines.errors import UserError

# Engines that give an image the same bits in a batch of any size and with any number of threads;
# the others choose their kernels by the shape, and round differently.
BATCH_INVARIANT = ("onnxruntime-cpu",)


@dataclass(frozen=True)
class Job:
    """What to draw.

    Attributes:
        count: number of images; a set can be made larger later.
        seed: of the set; image i of a seed is the same whatever the count.
        steps: of sampling.
        size: height and width in pixels.
        batch: images that are drawn together.
        pairs: whether the paper's RGB pairs are written too.
        sampler: one of :data:`emfast.diffusion.samplers.SAMPLERS`.
        eta: of "ddim".
        reuse: steps for which deep features are kept; 1 for none.
    """

    count: int
    seed: int
    steps: int
    size: tuple[int, int]
    batch: int
    pairs: bool
    sampler: str = "ddpm"
    eta: float = 0.0
    reuse: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch < 1:
            raise UserError(
                f"--count {self.count} and --batch {self.batch}: both must be at least 1"
            )
        check_seed(self.seed)


@dataclass(frozen=True)
class Generated:
    """What :func:`run_job` did.

    Attributes:
        folder: of the set.
        drawn: images drawn by this call.
        found: images of this shard that an earlier run had left.
        lacking: images that the set still lacks, which other shards draw.
        seconds: spent on drawing.
    """

    folder: Path
    drawn: int
    found: int
    lacking: int
    seconds: float


def run_job(
    job: Job,
    generator: Generator,
    folder: Path,
    shard: Shard | None = None,
    verify: bool = False,
    report: Callable[[int], None] | None = None,
) -> Generated:
    """Draw a set, or what is missing of it, into a folder.

    A run that was killed ends, started again, with the same bytes as one that was not, and shards
    end with the same bytes as one run: images are drawn again unless the manifest lists them and
    their files are there.

    Args:
        job: what to draw.
        generator: the denoiser on its engine.
        folder: new, empty, or holding the same job, of at most as many images.
        shard: the part of the set that this call draws; all of it by default.
        verify: compare the SHA-256 of files that are there, instead of their size alone.
        report: called, from another thread, with the number of images that are newly written and
            listed; there is no progress bar then.

    Raises:
        UserError: the folder holds something else or cannot be written, the disk is full, or the
            engine failed. What was drawn is kept.
    """
    shard = shard or Shard()
    generator.check_size(job.size)
    generator.check_reuse(job.reuse)
    sampler = generator.spec.sampler(job.steps, job.sampler, job.eta)
    classes = sum(c.kind == "mask" for c in generator.spec.channels)
    if job.pairs and classes > 1:
        raise UserError(
            f"an RGB pair holds one class, and {generator.bundle.manifest.name} draws {classes}; "
            "leave out --rgb"
        )
    invariant = generator.engine.info.engine in BATCH_INVARIANT
    block = 1 if invariant else job.batch
    record = _record(job, generator, invariant)
    place = SetFolder(folder, record, shard)
    missing = place.missing(job.count, block, verify)
    found = int(shard.owned(job.count, block).sum()) - len(missing)
    start, steps = time.monotonic(), len(sampler.steps)
    drawn, listed, note = 0, 0, ""

    def tell(images: int) -> None:
        nonlocal listed
        listed += images
        if report is not None:
            report(images)

    writer = SetWriter(place, _drawn_by(record, generator), classes, tell)
    total = found + len(missing)
    shown = _silent() if report else progress("steps", total * steps, found * steps)
    try:
        with shown as advance, writer:
            for indices, wanted in _batches(missing, job.batch, invariant):

                def on_step(images: int = len(wanted), text: str = note) -> None:
                    # A disk that is full shall not wait for the end of the batch.
                    writer.check()
                    advance(images, text)

                decoded = generator.sample(
                    indices,
                    job.seed,
                    job.steps,
                    job.size,
                    on_step,
                    job.sampler,
                    job.eta,
                    job.reuse,
                )
                writer.submit(indices, wanted, decoded)
                drawn += len(wanted)
                speed = drawn / (time.monotonic() - start)
                note = f"{found + drawn} of {total} images, {speed:.3g} images/s"
                advance(0, note)
        seconds = time.monotonic() - start
        lacking = place.finish()
    except UserError as error:
        raise UserError(
            f"{error}; {found + listed} of {total} images are written, and the same command goes "
            "on with the rest"
        ) from error
    return Generated(folder, drawn, found, lacking, seconds)


@contextmanager
def _silent() -> Iterator[Advance]:
    yield lambda steps=1, note="": None


def _batches(
    missing: npt.NDArray[np.int64], batch: int, invariant: bool
) -> Iterator[tuple[list[int], list[int]]]:
    """Images that are drawn together, and those of them that are wanted.

    Args:
        missing: numbers of the images to draw, ascending.
        batch: images that are drawn together.
        invariant: whether an image is the same in every batch. Where it is not, batches are always
            cut at the same places and full, beyond the end of the set too: it may grow.
    """
    if invariant:
        for start in range(0, len(missing), batch):
            indices = missing[start : start + batch].tolist()
            yield indices, indices
        return
    for block in np.unique(missing // batch).tolist():
        yield (
            list(range(block * batch, (block + 1) * batch)),
            missing[missing // batch == block].tolist(),
        )


def _record(job: Job, generator: Generator, invariant: bool) -> dict[str, Any]:
    place = generator.prepare(job.batch, job.size).name
    settings = {
        **asdict(job),
        "size": list(job.size),
        "batch": None if invariant else job.batch,
        "eta": job.eta if job.sampler == "ddim" else None,
    }
    if job.reuse == 1:
        del settings["reuse"]
    return describe(settings, generator.bundle, generator.engine.info, place)


def _drawn_by(record: dict[str, Any], generator: Generator) -> dict[str, Any]:
    """What the lines of all images have in common."""
    engine = record["engine"]
    return {
        **{
            key: record[key]
            for key in ("seed", "steps", "sampler", "eta", "reuse")
            if key in record
        },
        "engine": engine["name"],
        "runtime": engine["runtime"],
        "precision": engine["precision"],
        "device": device_name(generator.engine.info),
        "bundle": record["model"]["sha256"],
    }
