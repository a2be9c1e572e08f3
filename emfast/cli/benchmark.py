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
    batch: Annotated[int, typer.Option(help="Images that are drawn together.")] = 4,
    steps: Annotated[int, typer.Option(help="Steps of a round, from 2.")] = 20,
    rounds: Annotated[int, typer.Option(help="Rounds that are counted; one more warms up.")] = 5,
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
    from emfast.benchmark.sampling import (
        benchmark_sampling,
        choose_engines,
        emfast_entries,
        peer_entries,
        write_report,
    )

    if peers:
        from emfast.cli.requirements import require

        require("train", "torch")
        require("diffusers", "diffusers")
    chosen = choose_engines(model, engine or [])
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
