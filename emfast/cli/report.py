"""``emfast report``: a synthetic set judged against real slices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    real: Annotated[
        Path, typer.Argument(help="Real slices with masks: a folder with images/ and masks/.")
    ],
    synthetic: Annotated[
        Path,
        typer.Argument(
            help="What emfast generate wrote, or another folder with images/ and masks/"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for report.html and report.json; made.")],
    limit: Annotated[
        int, typer.Option(help="At most so many synthetic images, evenly over the set.")
    ] = 1000,
    segmenter: Annotated[
        str,
        typer.Option(
            help="What judges whether masks and images agree: a shipped bundle or a folder."
        ),
    ] = "epfl-segmenter",
    features: Annotated[
        Path | None,
        typer.Option(
            help="ONNX file of another feature network: greys 0 to 255, float32 (batch, 1 or 3, "
            "height, width), to (batch, features)."
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="Of the segmenter: auto takes the first that runs here."),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of the networks; all processors if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws of real tiles.")] = 0,
) -> None:
    """Judge a synthetic set: one HTML page with pictures, and report.json.

    Every score stands beside the same score between real tiles.

    Example: emfast report data/epfl synthetic --out report
    """
    import json

    from emfast.cli.requirements import require

    require("report", "scipy", "skimage", "prdc", "matplotlib", "jinja2")

    from emfast.quality import scores
    from emfast.quality.comparison import compare_sets
    from emfast.quality.features import FeatureNetwork
    from emfast.quality.page import render
    from emfast.quality.sets import open_labelled
    from emfast.segmentation.segmenter import Segmenter
    from engines.files import atomic_folder

    with (
        open_labelled(real) as real_slices,
        open_labelled(synthetic) as synthetic_slices,
        FeatureNetwork.open(features, threads) as network,
        Segmenter.open(segmenter, engine, threads=threads) as judge,
        atomic_folder(out) as folder,
    ):
        for line in judge.passed_over:
            typer.echo(line, err=True)
        typer.echo(f"engine: {judge.info}", err=True)
        comparison = compare_sets(real_slices, synthetic_slices, network, judge, limit, seed)
        (folder / "report.html").write_text(render(comparison), encoding="utf-8")
        values = json.dumps(comparison.to_dict(), indent=1, allow_nan=False)
        (folder / "report.json").write_text(values + "\n", encoding="utf-8")
    for score in scores.SCORES.values():
        row = comparison.rows[score.name]
        typer.echo(
            f"{score.title:<38}{score.text(row.synthetic):>20}   real {score.text(row.real)}"
        )
    typer.echo(f"{out}: report.html, report.json")
