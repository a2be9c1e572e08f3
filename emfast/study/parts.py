"""The slices of a study: those it tests on, and those that each row may see."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emfast.data.split import holdout_split, parse_slices, slice_ranges
from emfast.data.stack import Stack, read_stack
from emfast.study.settings import ALL
from engines.errors import UserError
from engines.files import atomic_folder


@dataclass(frozen=True)
class Parts:
    """A stack cut in two.

    Attributes:
        stack: all slices with masks.
        pool: numbers of the slices that rows choose from.
        test: numbers of those that every arm is scored on.
        gap: slices between the two that belong to neither.
    """

    stack: Stack
    pool: tuple[int, ...]
    test: tuple[int, ...]
    gap: int

    def to_dict(self) -> dict[str, Any]:
        """What a study remembers of its data, JSON-ready."""
        digest = hashlib.sha256(self.stack.images.data)
        digest.update(self.stack.labels().data)
        return {
            "pool": slice_ranges(self.pool),
            "test": slice_ranges(self.test),
            "gap": self.gap,
            "pool_count": len(self.pool),
            "slices": len(self.stack),
            "size": list(self.stack.images.shape[1:]),
            "sha256": digest.hexdigest(),
        }

    def row(self, row: str, seed: int | None) -> tuple[int, ...]:
        """Numbers of the slices that a row sees, evenly spread over the pool.

        Args:
            row: "all" or a number of slices.
            seed: shifts them along the pool; None for the middle of each n-th of it.

        Raises:
            UserError: the pool is smaller.
        """
        if row == ALL:
            return self.pool
        count, available = int(row), len(self.pool)
        if count > available:
            raise UserError(f"a row of {count} slices: there are only {available} to train on")
        offset = 0.5 if seed is None else float(np.random.default_rng(seed).random())
        return tuple(self.pool[int((i + offset) * available / count)] for i in range(count))


def read_parts(data: Path, pool: str, test: str, gap: int) -> Parts:
    """Read a stack with masks and cut it.

    Args:
        data: as for :func:`~emfast.data.stack.read_stack`.
        pool: slices to train on, as in 0-9,20, or "all" that are not near the test's.
        test: slices to test on.
        gap: slices on both sides of every tested block that no row may see.

    Raises:
        UserError: no masks, no such slices, or slices of the pool within the gap.
    """
    stack = read_stack(data)
    stack.labels()
    count = len(stack)
    free, tested = holdout_split(count, parse_slices(test, count), gap)
    chosen = free if pool == ALL else parse_slices(pool, count)
    near = sorted(set(chosen) - set(free))
    if near:
        raise UserError(
            f"slices {slice_ranges(near)} are to train on, but lie in the test's {test} or within "
            f"{gap} slices of it; name others with --slices or --test"
        )
    return Parts(stack, tuple(chosen), tuple(tested), gap)


def write_slices(stack: Stack, indices: Sequence[int], folder: Path) -> None:
    """Write slices and their masks as a stack of its own, whole or not at all."""
    with atomic_folder(folder) as temporary:
        chosen = stack.select(indices)
        for kind, pixels in (("images", chosen.images), ("masks", chosen.labels() * np.uint8(255))):
            (temporary / kind).mkdir()
            for name, slice in zip(chosen.names, pixels, strict=True):
                Image.fromarray(slice).save(temporary / kind / f"{name}.png")
