"""``emfast data``: look at a stack, split it, cut tiles from it, download the EPFL stack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Read EM stacks, split them, cut tiles, fetch the EPFL stack.",
    epilog="Example: emfast data info data/epfl",
)

Source = Annotated[
    Path,
    typer.Argument(
        help="Folder with images/ and masks/ or training.tif and training_groundtruth.tif; or a "
        "folder of slices, a multi-page TIFF, a single image.",
    ),
]
Masks = Annotated[
    Path | None,
    typer.Option(
        help="Folder or TIFF of masks, where they are not beside the images. A folder may cover "
        "a part of the slices; the others are left out.",
    ),
]


@app.command(epilog="Example: emfast data info data/epfl")
def info(source: Source, masks: Masks = None) -> None:
    """Say what a stack holds: slices, size, greys and mask coverage."""
    from emfast.data.stack import find_sources, read_stack
    from emfast.data.summary import summarize

    images_source, masks_source = find_sources(source)
    stack = read_stack(source, masks)
    summary = summarize(stack)
    rows = {
        "images": str(images_source),
        "masks": str(masks or masks_source or "none"),
        "slices": f"{summary.slices}, {stack.names[0]} to {stack.names[-1]}",
        "size": f"{summary.width} x {summary.height} pixels",
        "grey": f"mean {summary.grey_mean:.1f}, standard deviation {summary.grey_deviation:.1f}",
    }
    if summary.coverage is not None:
        rows["mask coverage"] = f"{summary.coverage:.2%} of all pixels"
    if summary.object_grey is not None:
        rows["object grey"] = f"mean {summary.object_grey:.1f} under the masks"
    for key, value in rows.items():
        typer.echo(f"{key + ':':<15}{value}")


@app.command(epilog="Example: emfast data split data/epfl --hold-out 140-164 --gap 5")
def split(
    source: Source,
    hold_out: Annotated[
        str, typer.Option(help="Slices to hold out, numbered from 0, as in 140-164 or 0-9,80-99.")
    ],
    gap: Annotated[
        int, typer.Option(help="Slices on each side of a held-out block that neither part uses.")
    ] = 5,
    out: Annotated[
        Path | None, typer.Option(help="JSON file to write instead of printing.")
    ] = None,
) -> None:
    """Split a stack into training and held-out blocks of consecutive slices, as JSON.

    Neighbouring slices are nearly the same image, so random tiles or slices would leak from one
    part into the other.
    """
    from emfast.data.split import split_json
    from emfast.data.stack import find_sources, read_slices
    from engines.files import atomic_write

    _, names = read_slices(find_sources(source)[0])
    text = split_json(str(source), names, hold_out, gap)
    if out is None:
        typer.echo(text)
    else:
        with atomic_write(out) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


@app.command(epilog="Example: emfast data tiles data/epfl --paper --slices 0-134 --out tiles")
def tiles(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder to make; it must not exist or be empty.")],
    masks: Masks = None,
    slices: Annotated[
        str | None,
        typer.Option(
            help="Slices to cut, as in 0-9,20, numbered from 0 (where --masks covers a part, among "
            "that part); all if left out."
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = 256,
    stride: Annotated[
        int | None,
        typer.Option(help="Distance between tiles in pixels; half the size if not given."),
    ] = None,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper",
            help="The paper's tiles: 256 x 256 at stride 128, and 512 x 512 at stride 256 "
            "reduced to 256 x 256.",
        ),
    ] = False,
    rgb: Annotated[
        bool,
        typer.Option("--rgb", help="Write the paper's RGB pairs (R = G = image, B = mask)."),
    ] = False,
) -> None:
    """Cut square tiles from every slice of a stack and write them as PNG files."""
    from emfast.data.split import parse_slices
    from emfast.data.stack import read_stack
    from emfast.data.tiles import PAPER_SIZE, paper_windows, tile_windows
    from emfast.data.write import write_tiles
    from engines.errors import UserError

    if paper and (size != PAPER_SIZE or stride is not None):
        raise UserError("--paper sets size and stride itself; leave --size and --stride out")
    stack = read_stack(source, masks)
    if slices is not None:
        stack = stack.select(parse_slices(slices, len(stack)))
    height, width = stack.images.shape[1:]
    if paper:
        windows = paper_windows(height, width)
    else:
        windows = tile_windows(height, width, size, max(size // 2, 1) if stride is None else stride)
    count = write_tiles(stack, windows, out, size, rgb)
    typer.echo(f"{count} tiles of {len(stack)} slices in {out}")


@app.command(epilog="Example: emfast data fetch --out data/epfl")
def fetch(
    out: Annotated[Path, typer.Option(help="Folder for the files; made if missing.")],
    testing: Annotated[
        bool,
        typer.Option(
            "--testing",
            help="Fetch the testing stack too. It is for final evaluations only, and nothing may "
            "be trained or chosen on it.",
        ),
    ] = False,
    base_url: Annotated[
        str | None, typer.Option(help="Address of another folder that holds the files.")
    ] = None,
) -> None:
    """Download the EPFL hippocampus training stack and its labels (260 MB) and check them.

    Files that are in the folder already, also by hand, are only checked. The publishers give no
    checksums: sizes are compared with the published ones, and the SHA-256 of each file is
    recorded when it is first seen and compared from then on.
    """
    from emfast.data import fetch as fetching

    files = (*fetching.TRAINING, *(fetching.TESTING if testing else ()))
    for file in fetching.fetch(files, out, base_url or fetching.BASE_URL):
        done = "downloaded" if file.downloaded else "already there"
        check = {
            "published": "SHA-256 as published",
            "recorded": f"SHA-256 as recorded in {fetching.RECORD}",
            "nothing": f"SHA-256 {file.sha256} recorded now; none was published to compare with",
        }[file.check]
        typer.echo(f"{file.path}: {done}, size as published, {check}")
    typer.echo(f"Please cite {fetching.CITATION} ({fetching.PAGE}).")
