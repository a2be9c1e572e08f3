"""A request's bytes -> grey slices; sizes are checked before anything is decoded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from emfast.data.image import size_text
from emfast.data.tiff import check_complete, page_array, readable
from emfast.server.errors import ApiError
from emfast.volumes.grey import single_channel
from emfast.volumes.tiff_voxels import tiff_voxel_size
from engines.errors import UserError

Pixels = npt.NDArray[Any]

NAME = "the body"
ACCEPTED = "PNG, JPEG, BMP, TIFF (several pages: a stack) or a NumPy array (.npy)"
# By their first bytes: the names that clients give are often those of their tools' defaults.
MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\x93NUMPY": "NPY",
}
# A directory of a TIFF page takes a few bytes of the file, but a thousand in memory; so does a
# slice on its way.
MAX_PAGES = 4096
# Bytes of a pixel in those of Pillow's modes that take more than one.
WIDE_MODES = {"I": 4, "F": 4}
MAX_CHANNELS = 4
# Codecs that stop at the size the page declares. Those with a size of their own inside, such as
# JPEG, could give more.
COMPRESSIONS = (
    tifffile.COMPRESSION.NONE,
    tifffile.COMPRESSION.LZW,
    tifffile.COMPRESSION.ADOBE_DEFLATE,
    tifffile.COMPRESSION.DEFLATE,
    tifffile.COMPRESSION.PACKBITS,
    tifffile.COMPRESSION.LZMA,
    tifffile.COMPRESSION.ZSTD,
)


@dataclass(frozen=True)
class Decoded:
    """What a body held.

    Attributes:
        slices: integers or floats (slices, height, width), of this machine's byte order.
        stack: whether the body was a stack, of one slice perhaps.
        pixel_size: height and width of a pixel in nm, or None where the file does not say.
    """

    slices: Pixels
    stack: bool
    pixel_size: tuple[float, float] | None = None


def decode(body: bytes, max_pixels: int) -> Decoded:
    """Decode an image file or array.

    Args:
        body: of a request.
        max_pixels: of 8 bits in all its pages together; wider ones count once a byte.

    Raises:
        ApiError: 413 for too many pixels, 415 for another format.
        UserError: a damaged file, colours, or pages that differ in size or type.
    """
    kind = next((kind for magic, kind in MAGIC.items() if body.startswith(magic)), None)
    if kind is None:
        got = f"bytes that begin with {bytes(body[:8])!r}" if body else "an empty body"
        raise ApiError(415, got, ACCEPTED)
    if kind == "NPY":
        return _array(body, max_pixels)
    if kind == "TIFF":
        return _tiff(body, max_pixels)
    return _picture(body, kind, max_pixels)


def _picture(body: bytes, kind: str, max_pixels: int) -> Decoded:
    try:
        with Image.open(io.BytesIO(body), formats=(kind,)) as image:
            width, height = image.size
            wide = 2 if image.mode.startswith("I;16") else WIDE_MODES.get(image.mode, 1)
            if width * height * wide > max_pixels:
                raise _too_many(f"an image of {width} x {height} pixels", max_pixels)
            if (frames := getattr(image, "n_frames", 1)) > 1:
                got = f"an animation of {frames} frames"
                raise ApiError(422, got, "one image, or a stack as TIFF")
            # As emfast.data.image.read_pixels, which takes a path.
            transparent = "transparency" in image.info
            if image.mode in ("P", "1", "CMYK") or transparent:
                pixels = np.asarray(image.convert("RGBA" if transparent else "RGB"))
            else:
                pixels = np.asarray(image)
    except ApiError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many(str(error), max_pixels) from None
    except Exception as error:  # a damaged file raises whatever its reader raises
        raise ApiError(422, f"a truncated or damaged {kind} file ({error})", ACCEPTED) from None
    return Decoded(_stack([(NAME, pixels)]), stack=False)


def _tiff(body: bytes, max_pixels: int) -> Decoded:
    with readable(Path(NAME)), tifffile.TiffFile(io.BytesIO(body)) as tiff:
        pixels = 0
        for number, page in enumerate(tiff.pages):
            if number == MAX_PAGES:
                raise ApiError(413, f"more than {MAX_PAGES} pages", "fewer pages in a request")
            pixels += _checked(page.aspage(), number, max_pixels)
            if pixels > max_pixels:
                got = f"{number + 1} pages or more of {pixels} pixels of 8 bits"
                raise _too_many(got, max_pixels)
        check_complete(tiff, NAME)
        if not len(tiff.pages):
            raise ApiError(422, "a TIFF without pages", ACCEPTED)
        voxel = tiff_voxel_size(tiff)
        size = None if voxel.y is None or voxel.x is None else (voxel.y, voxel.x)
        pages = [
            (f"{NAME}, page {number}", page_array(page.aspage(), f"{NAME}, page {number}"))
            for number, page in enumerate(tiff.pages)
        ]
    return Decoded(_stack(pages), len(pages) > 1, size)


def _checked(page: tifffile.TiffPage, number: int, max_pixels: int) -> int:
    """The pixels of 8 bits of a page, whose decoding takes no more memory than they tell."""
    wide = max(1, -(-page.bitspersample // 8))
    pixels = page.imagewidth * page.imagelength * page.imagedepth * wide
    if page.samplesperpixel > MAX_CHANNELS:
        got = f"page {number} of {page.samplesperpixel} channels"
        raise ApiError(422, got, "grey pages, one channel")
    if page.compression not in COMPRESSIONS:
        names = ", ".join(compression.name for compression in COMPRESSIONS)
        compression = tifffile.COMPRESSION(page.compression).name
        raise ApiError(415, f"page {number} compressed as {compression}", f"TIFF with {names}")
    # A tile can be declared larger than its page, and is decoded whole.
    segment = wide * int(np.prod([max(side, 1) for side in page.chunks], dtype=object))
    if segment > max(MAX_CHANNELS * max_pixels, pixels):
        raise _too_many(f"page {number} in tiles of {segment} pixels", max_pixels)
    return pixels


def _array(body: bytes, max_pixels: int) -> Decoded:
    """The array of a .npy file, whose header is read without unpickling anything."""
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    except ValueError as error:
        raise ApiError(422, f"a damaged .npy header ({error})", ACCEPTED) from None
    accepted = "bool, integers or floats of shape (height, width) or (slices, height, width)"
    # Python's integers, which do not overflow.
    pixels = int(np.prod(shape, dtype=object))
    if len(shape) not in (2, 3) or pixels < 1 or dtype.kind not in "buif":
        raise ApiError(422, f"{dtype} of shape {shape}", accepted)
    if pixels * dtype.itemsize > max_pixels:
        raise _too_many(f"{dtype} of shape {shape}", max_pixels)
    if len(shape) == 3 and shape[0] > MAX_PAGES:
        raise ApiError(413, f"{shape[0]} slices", f"at most {MAX_PAGES} slices in a request")
    rest = len(body) - file.tell()
    if rest != pixels * dtype.itemsize:
        needed = pixels * dtype.itemsize
        raise ApiError(422, f"{rest} bytes behind the .npy header", f"{needed} for its shape")
    flat: npt.NDArray[np.generic] = np.frombuffer(body, dtype, offset=file.tell())
    array = flat.reshape(shape, order="F" if fortran else "C")
    planes = array if array.ndim == 3 else array[None]
    slices = _stack([(f"{NAME}, slice {i}", plane) for i, plane in enumerate(planes)])
    return Decoded(slices, stack=array.ndim == 3)


def _stack(slices: Sequence[tuple[str, Pixels]]) -> Pixels:
    """Named images as one array; :class:`UserError` names the first that differs."""
    greys = [single_channel(array, name) for name, array in slices]
    for (name, _), grey in zip(slices, greys, strict=True):
        if (grey.shape, grey.dtype) != (greys[0].shape, greys[0].dtype):
            raise UserError(
                f"{name}: is {grey.dtype} of {size_text(grey)} pixels, but {slices[0][0]} is "
                f"{greys[0].dtype} of {size_text(greys[0])}; all slices of a stack must be alike"
            )
    return np.stack(greys)


def _too_many(got: str, max_pixels: int) -> ApiError:
    return ApiError(
        413,
        got,
        f"at most {max_pixels} pixels of 8 bits in a request, half as many of 16 bits; send fewer "
        "pages or tiles, or start the server with a larger --max-pixels",
    )
