"""``emfast segment``: masks for an image, a folder of slices or a volume of any format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def segment(
    source: Annotated[
        str,
        typer.Argument(
            help="An image, a folder of slices, a multi-page TIFF, HDF5 (file.h5:dataset), Zarr, "
            "OME-Zarr (path.zarr:1), MRC, or a folder with images/."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder for the masks; one that holds the same run goes on."),
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
    pixel_size: Annotated[
        float | None,
        typer.Option(help="Edge of a pixel in nm, instead of what the file says."),
    ] = None,
    invert: Annotated[
        bool, typer.Option("--invert", help="For slices with bright membranes on dark ground.")
    ] = False,
    normalize: Annotated[
        str | None,
        typer.Option(help="Greys by the statistics of each slice or of the volume; the bundle's."),
    ] = None,
    limits: Annotated[
        tuple[float, float] | None,
        typer.Option("--range", help="Darkest and brightest grey; what is beyond is clipped."),
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help="The stored axes, as in ZYX, where the file does not say.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="The array in an HDF5 file or a Zarr.")
    ] = None,
    tile: Annotated[
        int | None, typer.Option(help="Longest side in pixels that runs in one piece; 2048.")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(help="Pixels that a tile sees beyond what is kept; 128, which is exact."),
    ] = None,
    flips: Annotated[
        int, typer.Option(help="4 or 8: mean over as many mirror images, at as many times the time")
    ] = 1,
    median: Annotated[
        int, typer.Option(help="Median of the probability over so many slices, odd.")
    ] = 1,
    values: Annotated[
        str, typer.Option(help="0-255 or 0-1: values of masks of one class.")
    ] = "0-255",
    probability: Annotated[
        str | None,
        typer.Option(help="Also write probabilities: float32, or uint8, where 255 is 1."),
    ] = None,
    instances: Annotated[
        str | None,
        typer.Option(
            help="Also number the objects: components2d, components3d, watershed2d, watershed3d."
        ),
    ] = None,
    min_size: Annotated[
        int, typer.Option(help="Numbered objects have at least so many voxels.")
    ] = 0,
    fill_holes: Annotated[
        bool, typer.Option("--fill-holes", help="Holes of numbered objects count as object.")
    ] = False,
    shard: Annotated[
        str,
        typer.Option(
            help="3/16 segments the third of 16 parts; all share the folder (Zarr, images)."
        ),
    ] = "1/1",
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="auto|local|ADDRESS",
            help="Share the slices out on a Ray cluster: docs/cluster.md (Zarr, images).",
        ),
    ] = None,
) -> None:
    """Segment EM slices into masks of the same format, layout and names.

    Killed, it goes on when the same command is given again (Zarr and image files), and ends with
    the same files.

    Masks are 0 and 255; with a bundle of several classes, 0 and the labels from 1.

    Example: emfast segment slice.png --out out --overlay
    """
    from emfast.runtime import TILE
    from emfast.segmentation.choices import choices
    from emfast.segmentation.decisions import network_size
    from emfast.segmentation.job import segment_volume
    from emfast.segmentation.segmenter import Segmenter
    from emfast.synthesis.shard import Shard
    from emfast.volumes import open_volume

    part = Shard.parse(shard)
    scope, settings = choices(
        normalize,
        values,
        probability,
        instances,
        invert=invert,
        limits=limits,
        pixel_size=pixel_size,
        median=median,
        overlay=overlay,
        min_size=min_size,
        fill_holes=fill_holes,
    )
    if ray is not None:
        from emfast.cluster.connection import check_alone
        from emfast.cluster.segmentation import Opening, Source, segment_on_cluster

        check_alone(shard)
        with open_volume(source, axes=axes, dataset=dataset) as reader:
            opening = Opening(
                model, engine, precision, threads, threshold, TILE if tile is None else tile,
                network_size(model, reader.info, pixel_size), overlap, flips, scope,
            )  # fmt: skip
        on_cluster = segment_on_cluster(
            ray,
            Source(source, axes, dataset),
            out,
            opening,
            settings,
            lambda line: typer.echo(line, err=True),
        )
        for line in on_cluster.lines():
            typer.echo(line)
        return
    with (
        open_volume(source, axes=axes, dataset=dataset) as reader,
        Segmenter.open(
            model, engine, precision, threads, threshold, TILE if tile is None else tile,
            network_size(model, reader.info, pixel_size), overlap, flips, scope,
        ) as segmenter,
    ):  # fmt: skip
        for line in segmenter.passed_over:
            typer.echo(line, err=True)
        typer.echo(f"engine: {segmenter.info}", err=True)
        result = segment_volume(
            reader, out, segmenter, settings, part, lambda line: typer.echo(line, err=True)
        )
    for line in result.lines():
        typer.echo(line)
