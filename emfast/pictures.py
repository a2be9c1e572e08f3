"""Masks outlined over their images, alone and as contact sheets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Uint8 = npt.NDArray[np.uint8]

OUTLINE = (255, 64, 32)
GAP = 4


def outline(mask: Uint8) -> npt.NDArray[np.bool_]:
    """The object pixels of a mask that touch another label.

    Args:
        mask: uint8 (height, width), 0 for background or a label.

    Returns:
        bool (height, width).
    """
    edge = np.zeros(mask.shape, dtype=bool)
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[1:] |= mask[1:] != mask[:-1]
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    return edge & (mask > 0)


def overlay(image: Uint8, mask: Uint8) -> Uint8:
    """Draw a mask's outline over its image.

    Args:
        image: uint8 (height, width), greys in [0, 255].
        mask: uint8 (height, width), 0 for background.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    rgb = np.repeat(image[..., None], 3, axis=2)
    rgb[outline(mask)] = OUTLINE
    return rgb


def contact_sheet(images: Uint8, masks: Uint8, columns: int = 4) -> Image.Image:
    """Arrange pairs in rows: each image, and below it the image with its mask outlined.

    Args:
        images: uint8 (count, height, width), greys in [0, 255]; count is at least 1.
        masks: uint8 of the same shape, 0 for background.
        columns: pairs in a row.
    """
    count, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full(
        (rows * (2 * height + 3 * GAP), columns * (width + GAP) - GAP, 3), 255, dtype=np.uint8
    )
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        top = i // columns * (2 * height + 3 * GAP)
        left = i % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = image[..., None]
        below = top + height + GAP
        sheet[below : below + height, left : left + width] = overlay(image, mask)
    return Image.fromarray(sheet[: -2 * GAP])
