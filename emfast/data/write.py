"""Writing a set of tiles to a folder that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from emfast.data.pairs import encode_pair
from emfast.data.stack import Stack
from emfast.data.tiles import Window, cut_tiles
from emfast.progress import progress
from engines.files import atomic_folder


def write_tiles(
    stack: Stack, windows: Sequence[Window], out: Path, size: int = 256, rgb: bool = False
) -> int:
    """Cut tiles from a stack and write them as PNG files.

    They are named after the slice and the window, as in ``training0000_y0128_x0256_s512.png``, and
    lie in ``images/`` and ``masks/`` (0 and 255; left out where the stack has none), or with
    ``rgb`` as the paper's pairs in ``pairs/``.

    Args:
        stack: slices with or without masks.
        windows: parts of every slice, as in :func:`~emfast.data.tiles.cut_tiles`.
        out: the folder to make; it must not exist or be empty.
        size: side of the tiles, in pixels.
        rgb: write RGB pairs.

    Returns:
        The number of tiles.

    Raises:
        UserError: pairs of a stack without masks, windows that do not fit, or a folder that
            holds files already or cannot be written.
    """
    if rgb:
        stack.labels()
    with atomic_folder(out) as folder, progress("tiles", len(stack) * len(windows)) as advance:
        for index, slice_name in enumerate(stack.names):
            tiles = cut_tiles(stack.select([index]), windows, size)
            for i, tile in enumerate(tiles.origins):
                name = f"{slice_name}_y{tile.y:04d}_x{tile.x:04d}_s{tile.size}.png"
                if tiles.masks is None:
                    files = {"images": tiles.images[i]}
                elif rgb:
                    files = {"pairs": encode_pair(tiles.images[i], tiles.masks[i])}
                else:
                    files = {
                        "images": tiles.images[i],
                        "masks": tiles.masks[i] * np.uint8(255),
                    }
                for kind, pixels in files.items():
                    (folder / kind).mkdir(exist_ok=True)
                    Image.fromarray(pixels).save(folder / kind / name)
            advance(len(windows))
    return len(stack) * len(windows)
