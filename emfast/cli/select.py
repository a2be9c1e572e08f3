"""``emfast select``: the images of a set that are worth training on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def select(
    source: Annotated[Path, typer.Argument(metavar="SET", help="What emfast generate drew.")],
    real: Annotated[
        Path, typer.Option(help="Real slices with masks: a folder with images/ and masks/.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the selected set; made.")],
    agreement: Annotated[
        float, typer.Option(help="Least Dice of a mask and what the segmenter sees in the image.")
    ] = 0.75,
    disagreement: Annotated[
        float, typer.Option(help="Share of pixels that may disagree whatever the Dice.")
    ] = 0.0075,
    distance: Annotated[
        float | None,
        typer.Option(
            help="Largest distance to real tiles in feature space, in that of a middling real "
            "tile; 1.5 times that of the farthest real tile if not given.",
        ),
    ] = None,
    similarity: Annotated[
        float | None,
        typer.Option(
            help="Largest similarity to a place of the real slices, from 0 to 1; half way from "
            "that of far real slices to 1 if not given.",
        ),
    ] = None,
    specks: Annotated[
        int, typer.Option(help="Most specks, under 64 pixels and inside the image.")
    ] = 0,
    area: Annotated[
        float | None,
        typer.Option(help="Largest share of object pixels; that of real tiles if not given."),
    ] = None,
    objects: Annotated[
        int | None, typer.Option(help="Most objects; as real tiles if not given.")
    ] = None,
    cut: Annotated[
        int | None,
        typer.Option(help="Most objects cut by the border; as real tiles if not given."),
    ] = None,
    best: Annotated[
        float | None,
        typer.Option(help="Of the images that pass, keep this share, from 0 to 1, by rank."),
    ] = None,
    match: Annotated[
        bool,
        typer.Option("--match", help="Keep the real tiles' mix of area and number of objects."),
    ] = False,
    first: Annotated[int | None, typer.Option(help="Keep so many, the first that pass.")] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Fill holes of masks and drop their specks beforehand."),
    ] = False,
    segmenter: Annotated[
        str,
        typer.Option(
            help="What judges whether masks and images agree: a shipped bundle or a folder."
        ),
    ] = "epfl-segmenter",
    engine: Annotated[
        str,
        typer.Option(help="Of the segmenter: auto takes the first that runs here."),
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (never int8), fp32, fp16 or int8, as the bundle has it.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of the networks; all processors if not given.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="Folder where scores are kept; scores, inside the set, if not given."),
    ] = None,
) -> None:
    """Keep the images of a set that pass the rules, as a set of its own.

    Scores are kept as they are made: killed, the same command goes on.

    Other rules, with another --out, take a moment.

    Example: emfast select synthetic --real data/epfl --out selected
    """
    from emfast.cli.requirements import require

    require("report", "scipy", "skimage", "prdc")

    from emfast.selection import Repair, Rules, select_set
    from emfast.selection.words import reasons_text

    rules = Rules(
        agreement=agreement,
        disagreement=disagreement,
        distance=distance,
        similarity=similarity,
        specks=specks,
        area=area,
        objects=objects,
        cut=cut,
        best=best,
        match=match,
        first=first,
    )
    selection = select_set(
        source,
        out,
        real,
        rules,
        Repair() if repair else None,
        segmenter=segmenter,
        engine=engine,
        precision=precision,
        threads=threads,
        scores=scores,
        tell=lambda text: typer.echo(text, err=True),
    )
    typer.echo(f"{selection.accepted} images kept, {selection.rejected} rejected")
    if selection.reasons:
        typer.echo(reasons_text(selection.reasons))
    if selection.note:
        typer.echo(selection.note)
    if repair:
        typer.echo(f"{selection.repaired} masks repaired")
    typer.echo(f"{out}: a set of its own; look at accepted.png and rejected.png")
