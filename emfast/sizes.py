"""Sizes of images as people write them."""

from __future__ import annotations

from engines.errors import UserError


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of "1024x768", which is width and height in pixels.

    Raises:
        UserError: another text, or a side of 0.
    """
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise UserError(f"{text!r}: expected a width and a height in pixels, as in 1024x768")
    width, height = (int(side) for side in sides)
    return height, width
