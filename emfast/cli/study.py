"""``emfast study``: whether synthetic images help to train a segmenter."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def study(
    data: Annotated[Path, typer.Argument(help="Stack with masks, as for emfast train.")],
    out: Annotated[Path, typer.Option(help="Folder of the study; one that it holds goes on.")],
    preset: Annotated[
        str,
        typer.Option(
            help="default (ours, for a GPU), paper (the seed paper's settings) or cpu (short runs)."
        ),
    ] = "default",
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="A few iterations of everything; the numbers mean nothing."),
    ] = False,
    rows: Annotated[
        str | None,
        typer.Option(help="Numbers of real slices, in this order; all,10,5,2,1 if not given."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many; as the preset says if not given.")
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Of real, unselected, selected, synthetic, pretrained; all if not given."
        ),
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option(
            help="Slices to train on, as in 0-9,20, or all outside --test and the gap; the paper's "
            "42 if not given."
        ),
    ] = None,
    test: Annotated[str, typer.Option(help="Slices to test on, numbered from 0.")] = "142-155",
    gap: Annotated[
        int, typer.Option(min=0, help="Slices beside the tested ones that nothing is trained on.")
    ] = 5,
    device: Annotated[str, typer.Option(help="That trains: auto, cpu or cuda.")] = "auto",
    engine: Annotated[
        str, typer.Option(help="That draws and selects: auto takes the first that runs here.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; all processors if not given.")
    ] = None,
) -> None:
    """Train segmenters with and without synthetic images, and tabulate what it brings.

    Each row has so many real slices, on which its denoiser is trained too, and each arm another
    training set: real, real + unselected synthetic, real + selected, synthetic only, and synthetic
    first and then real. OUT/table.md, study.json and study.png are written after every step.

    Killed, the same command goes on; other rows, seeds and arms may be asked for at any time.

    Example: emfast study epfl --preset cpu --rows 1,2,5 --out study
    """
    from emfast.cli.requirements import require

    require("train", "torch", "onnx", "onnxscript", "safetensors", "matplotlib")
    require("report", "scipy", "skimage", "prdc")

    from dataclasses import replace

    from emfast.study.parts import read_parts
    from emfast.study.run import Study
    from emfast.study.settings import PAPER_SLICES, study_preset
    from emfast.study.sources import Machine
    from emfast.training.device import open_device

    settings, extent = study_preset(preset, smoke)
    extent = replace(
        extent,
        rows=extent.rows if rows is None else tuple(rows.replace(" ", "").split(",")),
        seeds=seeds or extent.seeds,
        arms=extent.arms if arms is None else tuple(arms.replace(" ", "").split(",")),
    )
    parts = read_parts(data, PAPER_SLICES if slices is None else slices, test, gap)
    machine = Machine(open_device(device, threads), engine, threads)
    command = shlex.join(["emfast", *sys.argv[1:]])
    path = Study(settings, parts, out, machine, command).run(extent)
    typer.echo(f"{path}, with study.json and study.png beside it")
