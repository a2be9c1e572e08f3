"""A small volume and what writes one like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from emfast.volumes import VolumeInfo, create_like, open_volume

SHAPE = (7, 24, 40)


def greys(dtype: str = "uint8") -> np.ndarray[Any, Any]:
    """(7, 24, 40), every slice different, up to the largest value of an integer type."""
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE) * 37
    if np.dtype(dtype).kind == "f":
        return (values % 1000 / 999).astype(dtype)
    return (values % (int(np.iinfo(dtype).max) + 1)).astype(dtype)


def values(dtype: str = "uint8", classes: int = 0) -> np.ndarray[Any, Any]:
    """What is written: masks of 0 and 255, probabilities, or labels beyond 16 bits."""
    shape = (SHAPE[0], classes, *SHAPE[1:]) if classes else SHAPE
    flat = np.arange(np.prod(shape)).reshape(shape)
    if dtype == "uint8":
        return (flat % 5 == 0).astype(np.uint8) * np.uint8(255)
    return (flat / flat.size if dtype == "float32" else flat % 7 * 20_000).astype(dtype)


def write_like(
    source: Path | str,
    out: Path,
    dtype: str = "uint8",
    classes: int = 0,
    portion: int = 2,
    axes: str | None = None,
    dataset: str | None = None,
) -> tuple[VolumeInfo, Path]:
    """Write :func:`values` as ``source`` is stored, some slices at a time."""
    with open_volume(source, axes=axes, dataset=dataset) as reader:
        info = reader.info
        stored = values(dtype, classes)[: info.slices]
        with create_like(
            info, reader, out, name="masks", dtype=np.dtype(dtype), classes=classes
        ) as writer:
            for start in range(0, info.slices, portion):
                writer.write(start, stored[start : start + portion])
    return info, writer.path


def read_all(source: Path | str, portion: int = 3, **options: Any) -> np.ndarray[Any, Any]:
    """All slices, some at a time."""
    with open_volume(source, **options) as reader:
        count = reader.info.slices
        parts = [reader.read(i, min(i + portion, count)) for i in range(0, count, portion)]
        assert len(reader.names) == len(set(reader.names)) == count
        for part in parts:
            assert part.dtype == reader.info.dtype
    return np.concatenate(parts)
