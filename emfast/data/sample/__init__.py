"""One real slice with its mask, to try things on: see README.md beside this file."""

from __future__ import annotations

from pathlib import Path

from emfast.data.image import read_image, to_mask
from emfast.data.stack import Stack

FOLDER = Path(__file__).parent
IMAGE = FOLDER / "image.png"
MASK = FOLDER / "mask.png"


def read_sample() -> Stack:
    """The sample as a stack of one slice, uint8 (1, 768, 1024), with its mask."""
    mask = to_mask(read_image(MASK), str(MASK))
    return Stack(read_image(IMAGE)[None], mask[None], ("sample",), str(FOLDER))
