"""The paper's encoding of an image and its mask as one RGB picture: R = G = image, B = mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from emfast.data.image import Grey, read_pixels, size_text, to_mask
from engines.errors import UserError
from engines.files import atomic_write

RGB = npt.NDArray[np.uint8]


def encode_pair(image: Grey, mask: Grey) -> RGB:
    """Put an image and its mask into one RGB picture.

    Args:
        image: uint8 (height, width), greys in [0, 255].
        mask: uint8 (height, width), 0 background and 1 object.

    Returns:
        uint8 (height, width, 3): the image twice, then the mask as 0 and 255.

    Raises:
        UserError: image and mask differ in size.
    """
    if image.shape != mask.shape:
        raise UserError(
            f"an image of {size_text(image)} pixels cannot be paired with a mask of "
            f"{size_text(mask)}; both must have one size"
        )
    return np.stack([image, image, mask * np.uint8(255)], axis=-1)


def decode_pair(rgb: npt.NDArray[np.generic], source: str = "pair") -> tuple[Grey, Grey]:
    """Take an RGB picture apart into image and mask.

    Args:
        rgb: uint8 (height, width, 3).
        source: named in error messages.

    Returns:
        Image, uint8 (height, width) in [0, 255], and mask, uint8 (height, width) of 0 and 1.

    Raises:
        UserError: not an RGB picture, red and green that differ, or a blue channel with more than
            one value besides 0.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise UserError(
            f"{source}: holds {rgb.dtype} values of shape {rgb.shape}; a pair is 8-bit RGB without "
            "alpha, (height, width, 3)"
        )
    red, green, blue = np.moveaxis(rgb.astype(np.uint8), -1, 0)
    differing = int(np.count_nonzero(red != green))
    if differing:
        raise UserError(
            f"{source}: red and green differ in {differing} pixels; in a pair both hold the image"
        )
    return red.copy(), to_mask(blue, f"{source}, blue channel")


def write_pair(path: Path, image: Grey, mask: Grey) -> None:
    """Write a pair as RGB PNG; the arrays are those of :func:`encode_pair`."""
    picture = Image.fromarray(encode_pair(image, mask))
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG")


def read_pair(path: Path) -> tuple[Grey, Grey]:
    """Read an RGB PNG pair; see :func:`decode_pair`.

    Raises:
        UserError: missing, unreadable or truncated file, or not a pair.
    """
    return decode_pair(read_pixels(path), str(path))
