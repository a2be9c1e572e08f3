"""``emfast segment``: masks for an image, a folder or a TIFF stack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def segment(
    source: Annotated[
        Path,
        typer.Argument(
            help="A single image, a folder of slices, a multi-page TIFF, or a folder with images/."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for masks/, overlays/ and segment.json; made if missing.")
    ],
    model: Annotated[
        str, typer.Option(help="Name of a shipped bundle, or the folder of another one.")
    ] = "epfl-segmenter",
    engine: Annotated[
        str,
        typer.Option(help="auto takes the first engine that runs here; a name means that one."),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, fp16 or int8; auto takes what the bundle has and the engine likes best, "
            "but never int8."
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; all processors if not given.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Least probability of an object pixel, 0 to 1; the bundle's by default."),
    ] = None,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also draw every slice with its mask outlined.")
    ] = False,
) -> None:
    """Segment EM slices into masks of the same layout and names.

    Images give one mask file each, a TIFF stack gives one TIFF with as many pages. Masks are 0 and
    255; with a bundle of several classes, 0 and the labels from 1.

    Example: emfast segment slice.png --out out --overlay
    """
    from emfast.data.slices import common_size
    from emfast.data.stack import find_sources
    from emfast.segmentation.output import segment_files
    from emfast.segmentation.segmenter import Segmenter

    size = common_size(find_sources(source)[0])
    with Segmenter.open(model, engine, precision, threads, threshold, size=size) as segmenter:
        for line in segmenter.passed_over:
            typer.echo(line, err=True)
        typer.echo(f"engine: {segmenter.info}", err=True)
        result = segment_files(source, out, segmenter, overlay)
    noun = "slice" if result.slices == 1 else "slices"
    typer.echo(f"{result.slices} {noun} segmented, masks in {result.masks}")
    if result.overlays is not None:
        typer.echo(f"overlays in {result.overlays}")
    for label, share in result.coverage.items():
        typer.echo(f"{label}: {share:.2%} of all pixels")
