"""``emfast pack``: a synthetic set as WebDataset tars."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pack(
    source: Annotated[
        Path, typer.Argument(metavar="SET", help="What emfast generate or emfast select wrote.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the tars; one with the same set goes on.")],
    per_tar: Annotated[int, typer.Option(help="Images in a tar.")] = 1000,
) -> None:
    """Pack a set into WebDataset tars: for each image NNNNNN.image.png, .mask.png and .json.

    Killed, it goes on when the same command is given again, and ends with the same files.

    Example: emfast pack synthetic --out tars
    """
    from emfast.synthesis.pack import pack_set

    packed = pack_set(source, out, per_tar)
    print(f"{out}: {packed.images} images, tars: {packed.written + packed.found}")
    if packed.found:
        print(f"{packed.found} of them were there already")
