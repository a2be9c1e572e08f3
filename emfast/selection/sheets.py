"""Contact sheets of a selection: accepted images, and rejected ones with the reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from emfast.pictures import GAP, overlay

Uint8 = npt.NDArray[np.uint8]

# Images on a sheet.
SHOWN = 16
COLUMNS = 4
FONT = 12
LINE = 16
# Narrower images would leave no room for their captions.
LEAST_WIDTH = 256


def share_places(kinds: Sequence[Sequence[int]]) -> list[int]:
    """Fill a sheet with equally many images of each kind, as far as there are.

    Args:
        kinds: places of the images of each kind.

    Returns:
        At most :data:`SHOWN` places, kind by kind.
    """
    taken = [0] * len(kinds)
    for turn in range(SHOWN):
        for i, places in enumerate(kinds):
            if sum(taken) < SHOWN and turn < len(places):
                taken[i] += 1
    return [place for count, kind in zip(taken, kinds, strict=True) for place in kind[:count]]


def captioned_sheet(
    images: Sequence[Uint8], masks: Sequence[Uint8], captions: Sequence[Sequence[str]]
) -> Image.Image:
    """Arrange pairs in rows: an image, below it the same with its mask outlined, and a caption.

    Args:
        images: at least one, uint8 (height, width), all of one size.
        masks: uint8 of that shape, 0 for background.
        captions: lines of text under each pair.
    """
    height, width = images[0].shape
    cell = max(width, LEAST_WIDTH)
    columns = min(COLUMNS, len(images))
    lines = max(len(caption) for caption in captions)
    row = 2 * (height + GAP) + lines * LINE + 2 * GAP
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (cell + GAP) - GAP, rows * row), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for i, (image, mask, caption) in enumerate(zip(images, masks, captions, strict=True)):
        left, top = i % columns * (cell + GAP), i // columns * row
        sheet.paste(Image.fromarray(image).convert("RGB"), (left, top))
        sheet.paste(Image.fromarray(overlay(image, mask)), (left, top + height + GAP))
        for j, text in enumerate(caption):
            place = (left + 2, top + 2 * (height + GAP) + j * LINE)
            draw.text(place, _fitting(text, font, cell - 4), "black", font)
    return sheet


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Text, cut where it would reach into the next column."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
