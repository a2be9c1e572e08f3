"""Decoding TIFF pages, with damage told in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from emfast.data import reading
from engines.errors import UserError


def page_array(page: tifffile.TiffPage, source: str) -> npt.NDArray[np.generic]:
    """A page's pixels with white as the largest value; refuses colour palettes."""
    check_colours(page, source)
    return white_is_largest(page.asarray(), page)


def check_colours(page: tifffile.TiffPage, source: str) -> None:
    """Refuse colour palettes, and colours in planes of their own."""
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        raise UserError(f"{source}: has a colour palette; convert it to 8-bit grey first")
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1:
        raise UserError(
            f"{source}: holds {page.samplesperpixel} planes of one colour image; save every slice "
            "as a page of its own (tifffile: photometric='minisblack')"
        )


def white_is_largest(array: npt.NDArray[Any], page: tifffile.TiffPage) -> npt.NDArray[Any]:
    """Turn bits and unsigned integers over where the page stores white as 0."""
    inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype.kind in "bu"
    return ~array if inverted else array


def check_chain(tiff: tifffile.TiffFile, source: str) -> None:
    """Refuse a file that points to pages it does not hold: tifffile leaves them out silently."""
    pages = len(tiff.pages)
    tiff.filehandle.seek(tiff.pages.next_page_offset or 0)
    if tiff.filehandle.read(tiff.tiff.offsetsize) != bytes(tiff.tiff.offsetsize):
        raise UserError(f"{source}: is truncated or damaged, it ends after {pages} pages")


def check_complete(tiff: tifffile.TiffFile, source: str) -> None:
    """Refuse a file whose pages are not all there, or not all of what it holds."""
    check_chain(tiff, source)
    images = (tiff.imagej_metadata or {}).get("images", 0)
    if images > len(tiff.pages):
        raise UserError(
            f"{source}: holds {images} images in ImageJ's own layout for large files; "
            "save it from ImageJ as an image sequence"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep tifffile's log lines off the terminal while errors are told by exceptions."""
    logger = logging.getLogger("tifffile")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what a missing or damaged TIFF raises into a :class:`UserError`."""
    with _quiet(), reading.readable(path):
        try:
            yield
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except Exception as error:
            # Of some compressions tifffile names the package, of others it fails to import it.
            if isinstance(error, ImportError) or "imagecodecs" in str(error):
                raise UserError(
                    f"{path}: its compression needs imagecodecs (pip install 'emfast[volumes]'); "
                    "or store it uncompressed"
                ) from None
            raise
