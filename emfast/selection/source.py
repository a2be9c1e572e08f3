"""The set that is selected from: its images, read block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from emfast.data.image import read_image, size_text
from emfast.synthesis.manifest import read_job, read_manifest
from engines.errors import UserError
from engines.files import sha256

Uint8 = npt.NDArray[np.uint8]


class Source:
    """A finished set that ``emfast generate`` drew.

    Args:
        path: its folder.

    Attributes:
        record: what its ``job.json`` says.
        side: of its images, in pixels.

    Raises:
        UserError: not a set, one that lacks images, one that is a selection already, or images
            that are not square.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = read_job(path)
        if "selection" in self.record:
            raise UserError(f"{path}: is a selection; select from the set that it was made of")
        first = next(self.entries(), None)
        if first is None:
            raise UserError(f"{path}: the set is empty")
        image = read_image(path / file_of(first, "images"))
        if image.shape[0] != image.shape[1]:
            raise UserError(
                f"{path}: images of {size_text(image)} pixels; only square ones can be selected"
            )
        self.side = len(image)

    @property
    def classes(self) -> int:
        """Classes of the masks."""
        return int(self.record.get("model", {}).get("classes", 1))

    def entries(self) -> Iterator[dict[str, Any]]:
        """Lines of the manifest, in the order of the images' numbers."""
        return read_manifest(self.path)

    def blocks(self, start: int, size: int) -> Iterator[list[dict[str, Any]]]:
        """The lines from the ``start``-th on, ``size`` at a time."""
        entries = islice(self.entries(), start, None)
        while block := list(islice(entries, size)):
            yield block

    def image(self, entry: dict[str, Any]) -> Uint8:
        """An image, uint8 (side, side), greys in [0, 255]."""
        return self._read(entry, "images")

    def mask(self, entry: dict[str, Any]) -> Uint8:
        """Its mask, uint8 (side, side), 0 background and 1 object; classes count as one."""
        return (self._read(entry, "masks") > 0).astype(np.uint8)

    def pairs(self, entries: Sequence[dict[str, Any]]) -> tuple[Uint8, Uint8]:
        """Images and masks, uint8 (count, side, side) each."""
        images, masks = [self.image(e) for e in entries], [self.mask(e) for e in entries]
        for entry, image, mask in zip(entries, images, masks, strict=True):
            if {image.shape, mask.shape} != {(self.side, self.side)}:
                raise UserError(
                    f"{self.path / file_of(entry, 'images')}: is {size_text(image)} pixels, its "
                    f"mask {size_text(mask)}, and the first image {self.side} x {self.side}"
                )
        return np.stack(images), np.stack(masks)

    def _read(self, entry: dict[str, Any], kind: str) -> Uint8:
        """Decode a file; :class:`UserError` where it is not the one that the manifest lists."""
        name = file_of(entry, kind)
        path = self.path / name
        if not path.is_file() or sha256(path) != entry["files"][name]["sha256"]:
            raise UserError(
                f"{path}: is missing or not the file that the manifest lists; give the emfast "
                "generate command that drew the set again, with --verify"
            )
        return read_image(path)


def file_of(entry: dict[str, Any], kind: str) -> str:
    """Path of an image's file inside its set; ``kind`` is "images", "masks" or "pairs"."""
    names: dict[str, Any] = entry["files"]
    return next(name for name in names if name.startswith(f"{kind}/"))


def png(pixels: Uint8) -> tuple[bytes, dict[str, Any]]:
    """A PNG file of pixels, and its size and SHA-256 as a manifest lists them."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    data = buffer.getvalue()
    return data, {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
