"""``emfast generate``: labelled synthetic images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def generate(
    out: Annotated[
        Path, typer.Option(help="Folder of the set; one that holds the same job goes on.")
    ],
    count: Annotated[int, typer.Option(help="Number of labelled images.")] = 4,
    model: Annotated[
        str, typer.Option(help="Name of a shipped bundle, or the folder of another one.")
    ] = "epfl-denoiser",
    seed: Annotated[int, typer.Option(help="Same seed, same images.")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps; all that the model was trained with.")
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width in pixels; what the model was trained for."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images that are drawn together.")] = 4,
    rgb: Annotated[
        bool, typer.Option("--rgb", help="Also write the paper's RGB pairs (image, image, mask).")
    ] = False,
    engine: Annotated[
        str,
        typer.Option(help="auto takes the first engine that runs here; a name means that one."),
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto, fp32 or fp16: what the bundle has and the engine likes best.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; all processors if not given.")
    ] = None,
) -> None:
    """Draw labelled EM images: each comes with its mask.

    Killed, it goes on when the same command is given again, and ends with the same files.

    Example: emfast generate --count 100 --out synthetic
    """
    from emfast.progress import duration
    from emfast.synthesis.denoiser import Generator
    from emfast.synthesis.job import Job, run_job

    with Generator.open(model, engine, precision, threads, batch, size) as generator:
        for line in generator.passed_over:
            typer.echo(line, err=True)
        typer.echo(f"engine: {generator.engine.info}", err=True)
        steps = generator.spec.schedule.steps if steps is None else steps
        job = Job(count, seed, steps, size or generator.spec.size, batch, rgb)
        result = run_job(job, generator, out)
    if result.found:
        print(f"{result.found} images were there already")
    if result.drawn:
        speed = result.drawn / result.seconds
        print(
            f"{result.drawn} images at {job.steps} steps in {duration(result.seconds)} "
            f"({speed:.3g} images/s)"
        )
    print(f"{out}: images/, masks/, manifest.jsonl; look at {out / 'contact.png'}")
