"""``emfast evaluate``: predicted masks against labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="Predicted masks: a folder, a multi-page TIFF, a single image, or the --out of "
            "emfast segment."
        ),
    ],
    labels: Annotated[
        Path,
        typer.Argument(
            help="Labels: the same, or a data set with masks/ or training_groundtruth.tif. They "
            "may cover a part of the predictions."
        ),
    ],
    slices: Annotated[
        str | None,
        typer.Option(
            help="Slices to score, numbered from 0 in the longer of the two, as in 140-164; all "
            "labelled ones if not given."
        ),
    ] = None,
    per_slice: Annotated[
        bool, typer.Option("--per-slice", help="Show a row for every slice.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="JSON file to write the scores to.")
    ] = None,
) -> None:
    """Score masks against labels: Dice, IoU, precision and recall.

    The pooled scores are those of all pixels of all slices at once. Slices are matched by name, or
    in order where one side is a TIFF of equally many. Where both masks are empty a score is 1.

    Example: emfast evaluate out data/epfl --slices 140-164
    """
    import json

    from rich.console import Console
    from rich.table import Table

    from emfast.quality.overlap import Confusion
    from emfast.quality.scoring import score_files
    from engines.files import atomic_write

    scores = score_files(predictions, labels, slices)
    if json_file is not None:
        with atomic_write(json_file) as temporary:
            temporary.write_text(json.dumps(scores.to_dict(), indent=1) + "\n", encoding="utf-8")

    typer.echo(f"predictions: {scores.predictions}")
    typer.echo(f"labels: {scores.labels}")
    typer.echo(f"slices: {scores.slices} ({len(scores.per_slice)} scored)")
    if scores.unlabelled:
        typer.echo(f"predicted slices without labels, left out: {scores.unlabelled}")
    table = Table("slice", "Dice", "IoU", "precision", "recall")
    for column in table.columns[1:]:
        column.justify = "right"

    def row(name: str, counts: Confusion) -> None:
        values = (counts.dice, counts.iou, counts.precision, counts.recall)
        table.add_row(name, *(f"{value:.4f}" for value in values))

    if per_slice:
        for name, counts in scores.per_slice:
            row(name, counts)
        table.add_section()
    row("all, pooled", scores.pooled)
    Console().print(table)
