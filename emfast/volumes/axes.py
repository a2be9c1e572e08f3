"""Axes of a stored array: which of them are slices, rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.errors import UserError

LETTERS = "TCZYX"
NAMED = {**{letter.lower(): letter for letter in LETTERS}, "channel": "C", "time": "T"}
NAMES = {"T": "time points", "C": "channels"}

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """How slices lie in an array.

    Attributes:
        axes: one letter an axis, in stored order; Y and X are among them.
        shape: of the array.
    """

    axes: str
    shape: tuple[int, ...]

    def length(self, axis: str) -> int:
        """Length of an axis; 1 where the array does not have it."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.length("Z")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a slice in pixels."""
        return self.length("Y"), self.length("X")

    def index(self, start: int, stop: int) -> tuple[slice, ...]:
        """What selects the slices from ``start`` to before ``stop`` in the array."""
        return tuple(slice(start, stop) if axis == "Z" else slice(None) for axis in self.axes)

    def to_slices(self, block: Pixels) -> Pixels:
        """What :meth:`index` selected, as (slices, height, width)."""
        order = sorted(range(len(self.axes)), key=lambda i: "ZYX".find(self.axes[i]))
        return block.transpose(order).reshape(-1, *self.size)

    def from_slices(self, slices: Pixels) -> Pixels:
        """The inverse of :meth:`to_slices`.

        Args:
            slices: (slices, height, width), or (slices, classes, height, width) into an array
                whose axis C has the length ``classes``.
        """
        letters = "ZCYX" if slices.ndim == 4 else "ZYX"
        extra = [axis for axis in self.axes if axis not in letters]
        missing = [axis for axis in letters if axis not in self.axes]
        block = slices.reshape(*[1] * len(extra), *slices.shape)
        letters = "".join(extra) + letters
        block = block.squeeze(tuple(letters.index(axis) for axis in missing))
        letters = "".join(axis for axis in letters if axis not in missing)
        return block.transpose([letters.index(axis) for axis in self.axes])

    def with_classes(self, classes: int, before: str | None) -> Layout:
        """The same with an axis C of length ``classes``; unchanged for 0 classes.

        Args:
            classes: number of channels, or 0.
            before: the axis before which C is put where there is none; None puts it last.
        """
        if not classes:
            return self
        if "C" in self.axes:
            at = self.axes.index("C")
            return replace(self, shape=(*self.shape[:at], classes, *self.shape[at + 1 :]))
        at = len(self.axes) if before is None else self.axes.index(before)
        return Layout(
            self.axes[:at] + "C" + self.axes[at:], (*self.shape[:at], classes, *self.shape[at:])
        )


def given_axes(axes: str, shape: tuple[int, ...], source: str) -> str:
    """Check the axes that the user names for an array of ``shape``.

    Returns:
        The letters in upper case.

    Raises:
        UserError: other letters than T, C, Z, Y and X, one of them twice, no Y or X, or not as
            many as the array has axes.
    """
    letters = axes.upper()
    if set(letters) - set(LETTERS) or len(set(letters)) < len(letters) or not {*"YX"} <= {*letters}:
        raise UserError(
            f"axes {axes!r}: give each axis once, in stored order, as a letter of {LETTERS} "
            "(time, channel, slice, row, column) with Y and X among them, as in ZYX"
        )
    if len(letters) != len(shape):
        raise UserError(
            f"{source}: has {len(shape)} axes ({shape_text(shape)}), but {axes!r} names "
            f"{len(letters)}"
        )
    return letters


def named_axes(names: Sequence[object]) -> str | None:
    """The letters of axes that a file names; None where it leaves one out or names it otherwise.

    Args:
        names: one an axis, as in ("z", "y", "x").
    """
    letters = [NAMED.get(name.lower()) if isinstance(name, str) else None for name in names]
    return None if None in letters else "".join(filter(None, letters))


def one_volume(axes: str, shape: tuple[int, ...], source: str) -> Layout:
    """Check that an array of known axes is one grey volume.

    Raises:
        UserError: several channels or time points, an axis of unknown meaning, or nothing in it.
    """
    for axis, length in zip(axes, shape, strict=True):
        if axis in "ZYX" or length == 1:
            continue
        what = NAMES.get(axis, f"entries along its axis {axis}")
        slices = axes.replace(axis, "Z")
        advice = (
            f"if they are slices, say --axes {slices}; else save"
            if "Z" not in axes and not set(slices) - set(LETTERS)
            else "save"
        )
        raise UserError(
            f"{source}: has {length} {what} (axes {axes}, {shape_text(shape)}), and a volume has "
            f"one; {advice} the one to read by itself"
        )
    if "Y" not in axes or "X" not in axes or len(set(axes)) < len(axes):
        raise unknown_axes(shape, source)
    if 0 in shape:
        raise UserError(f"{source}: is empty ({shape_text(shape)})")
    return Layout(axes, shape)


def unknown_axes(shape: tuple[int, ...], source: str) -> UserError:
    """The error for an array whose axes the file does not name."""
    example = LETTERS[-len(shape) :] if len(shape) <= len(LETTERS) else "TCZYX"
    return UserError(
        f"{source}: holds {shape_text(shape)} values, and the file does not say which axis is "
        f"which; say it with --axes, as in --axes {example} "
        "(T time, C channel, Z slice, Y row, X column)"
    )


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape for messages."""
    return " x ".join(map(str, shape))


def native(array: Pixels) -> Pixels:
    """The same values in this machine's byte order; bool becomes uint8 0 and 255."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def native_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that :func:`native` gives."""
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")
