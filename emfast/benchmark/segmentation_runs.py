"""How the contestants of the segmentation benchmark are run: in turn, and each on a stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import tifffile

from emfast.benchmark.segmenters import Case
from emfast.benchmark.worker import Entry, Round, Worker
from emfast.data.tiff import readable
from emfast.progress import progress
from engines.errors import UserError

# Timed on a whole stack as well. The others differ from it in how a slice is run, which the cases
# show in less time.
ON_STACKS = ("monai",)
Measured = dict[tuple[str, Case], tuple[str, list[Round]]]


@dataclass(frozen=True)
class StackResult:
    """What one contestant took for a whole stack, from the TIFF to the TIFF of its masks.

    Attributes:
        label, description: who it was.
        slices: of the stack.
        seconds: with a warmed-up network, and everything written.
        peak_memory: of its process, in bytes.
    """

    label: str
    description: str
    slices: int
    seconds: float
    peak_memory: int


def in_turn(
    entries: Sequence[Entry],
    cases: Sequence[Case],
    rounds: int,
    left_out: dict[str, str],
    tell: Callable[[str], None],
) -> Measured:
    """Descriptions and rounds by label and case; who fails is added to ``left_out``."""
    workers = {}
    for entry in entries:
        try:
            workers[entry.label] = Worker(entry.label, entry.factory, entry.arguments)
        except UserError as error:
            leave_out(entry.label, error, left_out, tell)
    measured: Measured = {}
    with progress("rounds", (rounds + 1) * len(cases) * len(workers)) as advance:
        for number in range(rounds + 1):
            for case in cases:
                for label, worker in list(workers.items()):
                    advance(1, label)
                    try:
                        result = worker.run(case)
                    except UserError as error:
                        leave_out(label, error, left_out, tell)
                        del workers[label]
                        continue
                    if number:
                        measured.setdefault((label, case), (worker.description, []))[1].append(
                            result
                        )
    for worker in workers.values():
        worker.close()
    return {key: value for key, value in measured.items() if key[0] in workers}


def stack_size(stack: Path) -> tuple[int, int]:
    """Height and width of a stack's slices; :class:`UserError` for what is no such stack."""
    with readable(stack), tifffile.TiffFile(stack) as tiff:
        found = {(page.shape, str(page.dtype)) for page in tiff.pages}
    shape, dtype = found.pop()
    if found or len(shape) != 2 or dtype != "uint8":
        raise UserError(f"{stack}: expected a TIFF whose pages are 8-bit grey and of one size")
    return shape


def whole_stack(
    entries: Sequence[Entry],
    stack: Path,
    size: tuple[int, int],
    left_out: dict[str, str],
    tell: Callable[[str], None],
) -> list[StackResult]:
    """Each contestant in a new process, which ends before the next begins, so that its peak memory
    is that of the stack alone; one slice warms up. Who fails is added to ``left_out``."""
    results = []
    with TemporaryDirectory(prefix="emfast-") as folder:
        first = Path(folder) / "first.tif"
        with readable(stack), tifffile.TiffFile(stack) as tiff:
            count = len(tiff.pages)
            tifffile.imwrite(first, tiff.pages[0].asarray(), photometric="minisblack")
        for entry in entries:
            if entry.arguments.get("peer", ON_STACKS[0]) not in ON_STACKS:
                continue
            tell(f"{entry.label}: {stack.name}, {count} slices")
            try:
                worker = Worker(entry.label, entry.factory, entry.arguments)
                worker.run(Case("files", size, 1, 0.0, first))
                (seconds,) = worker.run(Case("files", size, 1, 0.0, stack)).steps
                results.append(
                    StackResult(entry.label, worker.description, count, seconds, worker.close())
                )
            except UserError as error:
                leave_out(f"{entry.label}, whole stack", error, left_out, tell)
    return results


def leave_out(
    label: str, error: UserError, left_out: dict[str, str], tell: Callable[[str], None]
) -> None:
    """Tell why a contestant does not take part, and note it."""
    tell(f"left out: {error}")
    left_out[label] = str(error)
