"""``emfast benchmark``: what a model costs on this machine, beside its peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, help="Measure what a model costs on this machine, beside its peers."
)


@app.command()
def sampling(
    model: Annotated[
        str, typer.Option(help="Name of a shipped denoiser, or the folder of another bundle.")
    ] = "epfl-denoiser",
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="Engine, or engine:precision; give it once for each to measure. By default every "
            "engine that runs here, in every precision of the bundle."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images that are drawn together.")] = 4,
    steps: Annotated[int, typer.Option(min=2, help="Steps of a round.")] = 20,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds that are counted; one more warms up.")
    ] = 5,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; all processors if not given.")
    ] = None,
    peers: Annotated[
        bool,
        typer.Option("--peers", help="Also diffusers with the seed paper's network and with ours."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for sampling.json, sampling.md and sampling.png."),
    ] = None,
) -> None:
    """Measure the denoising steps of a sampling.

    All contestants run in turn, each in a process of its own, after a warm-up. Images a second are
    those of 700 steps, extrapolated from the median step.

    Example: emfast benchmark sampling --peers --out benchmark
    """
    from rich.console import Console
    from rich.table import Table

    from emfast.benchmark import table
    from emfast.benchmark.engines import choose_engines
    from emfast.benchmark.sampling import (
        benchmark_sampling,
        emfast_entries,
        peer_entries,
        write_report,
    )
    from emfast.cli.requirements import require

    if out is not None:
        require("report", "matplotlib")
    if peers:
        require("train", "torch")
        require("diffusers", "diffusers")
    chosen = choose_engines(model, "denoiser", engine or [])
    entries = peer_entries(threads, batch) if peers else []
    entries += emfast_entries(model, chosen, threads, batch, steps)
    report = benchmark_sampling(entries, rounds, model, lambda line: typer.echo(line, err=True))
    shown = Table(*table.COLUMNS)
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in table.rows(report):
        shown.add_row(*row)
    Console().print(shown)
    if out is not None:
        write_report(report, out)
        print(f"{out}: sampling.json, sampling.md, sampling.png")


@app.command()
def segmentation(
    model: Annotated[
        str, typer.Option(help="Name of a shipped segmenter, or the folder of another bundle.")
    ] = "epfl-segmenter",
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="Engine, or engine:precision; give it once for each to measure. By default every "
            "engine that runs here, in every precision of the bundle that suits it."
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="Width and height of slices; 256x256 and 1024x768 by default."),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(help="Slices that run together, engine only; 1 and 4 by default."),
    ] = None,
    stack: Annotated[
        Path | None,
        typer.Option(help="A multi-page TIFF, 8-bit grey, that each segments whole, once."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds that are counted; one more warms up.")
    ] = 5,
    seconds: Annotated[
        float, typer.Option(help="Least time of each case in a round, in seconds.")
    ] = 2.0,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; all processors if not given.")
    ] = None,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers", help="Also the same network on PyTorch, torch.compile and MONAI's windows."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for segmentation.json, segmentation.md and segmentation.png."),
    ] = None,
) -> None:
    """Measure a segmenter: the engine only, from TIFF to TIFF, and on a whole stack.

    All contestants run in turn, each in a process of its own, after a warm-up. Latency is that of
    batch 1; memory is told for the stack.

    Example: emfast benchmark segmentation --peers --stack stack.tif --out benchmark
    """
    from rich.console import Console
    from rich.table import Table

    from emfast.benchmark.engines import choose_engines
    from emfast.benchmark.segmentation import (
        Settings,
        benchmark_segmentation,
        emfast_entries,
        peer_entries,
        write_report,
    )
    from emfast.benchmark.segmentation_table import sections
    from emfast.cli.requirements import require
    from emfast.sizes import parse_size

    if out is not None:
        require("report", "matplotlib")
    if peers:
        require("benchmark", "monai", "torch")
    settings = Settings(
        sizes=tuple(parse_size(text) for text in size or ("256x256", "1024x768")),
        batches=tuple(batch or (1, 4)),
        rounds=rounds,
        seconds=seconds,
        stack=stack,
    )
    entries = peer_entries(model, threads) if peers else []
    chosen = choose_engines(model, "segmenter", engine or [])
    entries += emfast_entries(model, chosen, threads, settings.sizes[0])
    report = benchmark_segmentation(
        entries, settings, model, lambda line: typer.echo(line, err=True)
    )
    for section in sections(report):
        shown = Table(*section.columns, title=section.title, title_justify="left")
        for column in shown.columns[1:]:
            column.justify = "right"
        for row in section.rows:
            shown.add_row(*row)
        Console().print(shown)
    if out is not None:
        write_report(report, out)
        print(f"{out}: segmentation.json, segmentation.md, segmentation.png")
