"""Decoding TIFF pages, with damage told in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from engines.errors import UserError


def page_array(page: tifffile.TiffPage, source: str) -> npt.NDArray[np.generic]:
    """A page's pixels with white as the largest value; refuses colour palettes."""
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        raise UserError(f"{source}: has a colour palette; convert it to 8-bit grey first")
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1:
        raise UserError(
            f"{source}: holds {page.samplesperpixel} planes of one colour image; save every slice "
            "as a page of its own (tifffile: photometric='minisblack')"
        )
    array = page.asarray()
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype.kind in "bu":
        array = ~array
    return array


def check_complete(tiff: tifffile.TiffFile, source: str) -> None:
    """Refuse a file that points to pages it does not hold: tifffile leaves them out silently."""
    tiff.filehandle.seek(tiff.pages.next_page_offset or 0)
    if tiff.filehandle.read(tiff.tiff.offsetsize) != bytes(tiff.tiff.offsetsize):
        raise UserError(f"{source}: is truncated or damaged, it ends after {len(tiff.pages)} pages")
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
    try:
        with _quiet():
            yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # a damaged TIFF raises whatever its decoder raises
        if "imagecodecs" in str(error):
            raise UserError(
                f"{path}: its compression needs one more package (pip install imagecodecs); "
                "or store it uncompressed"
            ) from None
        raise UserError(f"{path}: cannot be read, truncated or damaged ({error})") from None
