"""Decoding image files and TIFF pages to 8-bit grey."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, UnidentifiedImageError

from emfast.data import reading
from emfast.data.tiff import check_complete, page_array, readable
from engines.errors import UserError

Grey = npt.NDArray[np.uint8]

TIFF_SUFFIXES = (".tif", ".tiff")


def one_channel(array: npt.NDArray[Any], source: str) -> npt.NDArray[Any]:
    """The one grey channel of a decoded image.

    Args:
        array: (height, width) or (height, width, 1 to 4 channels).
        source: named in error messages.

    Returns:
        (height, width) of the same type. Equal colour channels are merged, an opaque alpha channel
        is dropped.

    Raises:
        UserError: colours that differ, transparency, or another shape.
    """
    if array.ndim == 3 and array.shape[2] in (2, 4):
        alpha = array[..., -1]
        opaque = np.iinfo(alpha.dtype.name).max if alpha.dtype.kind in "ui" else 1
        if not (alpha == opaque).all():
            raise UserError(f"{source}: has transparent pixels; flatten it to opaque grey first")
        array = array[..., :-1]
    if array.ndim == 3 and array.shape[2] in (1, 3):
        if not (array == array[..., :1]).all():
            raise UserError(f"{source}: is a colour image; EM slices and masks must be grey")
        array = array[..., 0]
    if array.ndim != 2 or 0 in array.shape:
        raise UserError(f"{source}: has shape {array.shape}; expected one image (height, width)")
    return array


def to_grey(array: npt.NDArray[np.generic], source: str) -> Grey:
    """Convert one decoded image to 8-bit grey where only one reading of it is possible.

    Args:
        array: (height, width) or (height, width, 1 to 4 channels), bool or integer.
        source: named in error messages.

    Returns:
        uint8 (height, width). Equal colour channels are merged, an opaque alpha channel is
        dropped, and integers wider than 8 bits are accepted while their values fit.

    Raises:
        UserError: colours that differ, transparency, floats, or values outside [0, 255].
    """
    array = one_channel(array, source)
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "ui":
        raise UserError(
            f"{source}: holds {array.dtype} values, whose grey range cannot be known; "
            "convert it to 8-bit grey first"
        )
    if array.dtype != np.uint8 and (int(array.min()) < 0 or int(array.max()) > 255):
        raise UserError(
            f"{source}: holds {array.dtype} values from {array.min()} to {array.max()}, and which "
            "of them is white cannot be known; rescale it to 8-bit grey first"
        )
    return array.astype(np.uint8)


def to_mask(grey: Grey, source: str) -> Grey:
    """Turn an 8-bit mask into 0 and 1.

    Args:
        grey: uint8, any shape, with at most one value besides 0.
        source: named in error messages.

    Raises:
        UserError: more than one value besides 0.
    """
    values = np.unique(grey)
    if len(values[values > 0]) > 1:
        raise UserError(
            f"{source}: has {len(values)} different values ({values[0]} to {values[-1]}); "
            "a mask has 0 for background and one other value, usually 255"
        )
    return (grey > 0).astype(np.uint8)


def read_image(path: Path) -> Grey:
    """Read one image file as 8-bit grey.

    Returns:
        uint8 (height, width).

    Raises:
        UserError: missing, unreadable or truncated file, or one that :func:`to_grey` refuses.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        pages = read_pages(path)
        if len(pages) != 1:
            raise UserError(f"{path}: holds {len(pages)} pages; expected a single image")
        image: Grey = pages[0]
        return image
    return to_grey(read_pixels(path), str(path))


def read_pixels(path: Path) -> npt.NDArray[np.generic]:
    """Decode one image file of any format but TIFF; palettes are resolved to colours.

    Returns:
        (height, width) or (height, width, channels), of the file's own dtype.

    Raises:
        UserError: missing, unreadable or truncated file.
    """
    with reading.readable(path):
        try:
            with Image.open(path) as image:
                transparent = "transparency" in image.info
                if image.mode in ("P", "1", "CMYK") or transparent:
                    return np.asarray(image.convert("RGBA" if transparent else "RGB"))
                return np.asarray(image)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except UnidentifiedImageError:
            raise UserError(f"{path}: is not an image that can be read") from None
        except Image.DecompressionBombError:
            raise UserError(
                f"{path}: has more pixels than are read from this format; store it as TIFF"
            ) from None


def read_pages(path: Path) -> Grey:
    """Read every page of a TIFF file as 8-bit grey.

    Returns:
        uint8 (pages, height, width).

    Raises:
        UserError: missing, unreadable or truncated file, pages of different sizes, or a page
            that :func:`to_grey` refuses.
    """
    with readable(path), tifffile.TiffFile(path) as tiff:
        check_complete(tiff, str(path))
        names = [f"{path} page {i}" for i in range(len(tiff.pages))]
        pages = [
            page_array(page.aspage(), name) for page, name in zip(tiff.pages, names, strict=True)
        ]
    if not pages:
        raise UserError(f"{path}: holds no pages")
    return stack_slices(list(zip(names, pages, strict=True)))


def stack_slices(slices: Sequence[tuple[str, npt.NDArray[np.generic]]]) -> Grey:
    """Stack named images of one size; :class:`UserError` names the first that differs."""
    greys = [to_grey(array, name) for name, array in slices]
    for (name, _), grey in zip(slices, greys, strict=True):
        if grey.shape != greys[0].shape:
            raise UserError(
                f"{name}: is {size_text(grey)} pixels, but {slices[0][0]} is "
                f"{size_text(greys[0])}; all slices of a stack must have one size"
            )
    return np.stack(greys)


def size_text(grey: Grey) -> str:
    """Width and height for messages, from an array (height, width) or (slices, ...)."""
    return f"{grey.shape[-1]} x {grey.shape[-2]}"
