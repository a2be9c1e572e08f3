"""The benchmark of the selection, at a size that takes a minute or two."""

from __future__ import annotations

from pathlib import Path

from benchmarks.selection import make_samples, rejected, write_reference, write_samples
from emfast.data.stack import read_stack
from emfast.selection import select_set

EACH = 40
HELD_OUT = 60
# Every third slice: copies are searched in a third of the time.
REFERENCE = range(0, 135, 3)
BAD = (
    "mask shifted by 24 pixels",
    "mask emptied",
    "noise image",
    "copy of a real tile",
    "specks in the mask",
)


def test_bad_samples_are_rejected_and_real_pairs_kept(epfl: Path, tmp_path: Path) -> None:
    stack = read_stack(epfl)
    kinds = make_samples(stack, EACH, HELD_OUT, seed=1, reference=REFERENCE)
    del kinds["mask shifted by 12 pixels"]  # small enough to pass for a poor outline
    drawn = write_samples(tmp_path / "drawn", [pair for pairs in kinds.values() for pair in pairs])
    real = write_reference(tmp_path / "real", stack, REFERENCE)
    select_set(drawn, tmp_path / "out", real, engine="onnxruntime-cpu")
    found = rejected(tmp_path / "out", kinds)
    shares = {name: row["rejected"] / row["images"] for name, row in found.items()}
    assert {name: shares[name] for name in BAD if shares[name] < 0.95} == {}, found
    assert shares["real held-out pair"] <= 0.1, found
