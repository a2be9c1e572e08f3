"""``emfast generate``: labelled synthetic images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engines.errors import UserError

if TYPE_CHECKING:
    from emfast.synthesis.job import Generated


def generate(
    out: Annotated[
        Path, typer.Option(help="Folder of the set; one that holds the same job goes on.")
    ],
    count: Annotated[
        int | None, typer.Option(help="Number of labelled images; 4 if not given.")
    ] = None,
    keep_until: Annotated[
        int | None,
        typer.Option(
            help="Instead of --count: draw until so many pass the rules of emfast select; all go "
            "to OUT/drawn, those that pass to OUT/selected."
        ),
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option(help="With --keep-until: real slices with masks, to judge by."),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="With --keep-until: fill holes of masks and drop their specks."
        ),
    ] = False,
    model: Annotated[
        str, typer.Option(help="Name of a shipped bundle, or the folder of another one.")
    ] = "epfl-denoiser",
    seed: Annotated[int, typer.Option(help="Same seed, same images.")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps; all that the model was trained with.")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="ddpm, ddim or dpm++; the last two are made for few steps.  [ddpm]"),
    ] = None,
    eta: Annotated[
        float, typer.Option(help="Fresh noise in each step of ddim, from 0 to 1, as much as ddpm.")
    ] = 0.0,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="The sampler and the few steps that docs/steps.md recommends."),
    ] = False,
    reuse: Annotated[
        int,
        typer.Option(
            help="Compute the coarse levels' features in every N-th step only: faster, on "
            "the engine openvino: docs/steps.md."
        ),
    ] = 1,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width in pixels; what the model was trained for."),
    ] = None,
    batch: Annotated[
        str,
        typer.Option(help="Images that are drawn together; auto tries some and takes the fastest."),
    ] = "4",
    shard: Annotated[
        str, typer.Option(help="3/16 draws the third of 16 parts; all parts share the folder.")
    ] = "1/1",
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare the SHA-256 of images that are there already."),
    ] = False,
    rgb: Annotated[
        bool, typer.Option("--rgb", help="Also write the paper's RGB pairs (image, image, mask).")
    ] = False,
    engine: Annotated[
        str,
        typer.Option(help="auto takes the first engine that runs here; a name means that one."),
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (never int8), fp32, fp16 or int8, as the bundle has it.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; all processors if not given.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="auto|local|ADDRESS",
            help="Share the set out on a Ray cluster: docs/cluster.md.",
        ),
    ] = None,
) -> None:
    """Draw labelled EM images: each comes with its mask.

    Killed, it goes on when the same command is given again, and ends with the same files.

    A larger --count makes a set larger, and --shard shares it between machines.

    Example: emfast generate --count 100 --out synthetic
    """
    from emfast.cli.requirements import require
    from emfast.diffusion.samplers import FAST_SAMPLER, FAST_STEPS
    from emfast.diffusion.spec import DenoiserSpec
    from emfast.synthesis.batch import MOST, fastest_batch, parse_batch, recorded_batch
    from emfast.synthesis.denoiser import Generator
    from emfast.synthesis.job import Job, run_job
    from emfast.synthesis.shard import Shard
    from engines.bundle import open_bundle

    if fast:
        if steps is not None or sampler is not None or eta:
            raise UserError("--fast chooses sampler and steps; leave out --sampler, --steps, --eta")
        sampler, steps = FAST_SAMPLER, FAST_STEPS
    sampler = sampler or "ddpm"
    if keep_until is None and (real is not None or repair):
        raise UserError("--real and --repair belong to --keep-until; give it, or use emfast select")
    if keep_until is not None:
        if real is None:
            raise UserError("--keep-until needs --real, slices with masks to judge by")
        if count is not None or shard != "1/1":
            raise UserError("--keep-until draws as many as it takes; leave out --count and --shard")
        require("report", "scipy", "skimage", "prdc")
        set_folder = out / "drawn"
    else:
        set_folder = out
    part = Shard.parse(shard)
    together = parse_batch(batch)
    if together is None:
        together = recorded_batch(set_folder)
    # What cannot be drawn is refused before an engine is opened, or on TensorRT built.
    spec = DenoiserSpec.from_dict(open_bundle(model, kind="denoiser").manifest.model)
    steps = spec.schedule.steps if steps is None else steps
    steps = min(steps, spec.schedule.steps) if fast else steps
    size = size or spec.size
    job = Job(
        4 if count is None else count, seed, steps, size, together or MOST, rgb, sampler, eta, reuse
    )
    spec.sampler(steps, sampler, eta)
    if ray is not None:
        from emfast.cluster.connection import check_alone
        from emfast.cluster.generation import draw_on_cluster

        check_alone(shard)
        if keep_until is not None:
            raise UserError("--ray draws a fixed --count; leave out --keep-until, or --ray")
        result = draw_on_cluster(
            ray, job, out, model, engine, precision, threads, verify, together is None,
            lambda text: typer.echo(text, err=True),
        )  # fmt: skip
        _print_result(out, result, steps, sampler)
        return
    with Generator.open(model, engine, precision, threads, together or MOST, size) as generator:
        for line in generator.passed_over:
            typer.echo(line, err=True)
        typer.echo(f"engine: {generator.engine.info}", err=True)
        if together is None:
            generator.check_size(size)
            together = fastest_batch(generator, size, tell=lambda t: typer.echo(str(t), err=True))
        typer.echo(f"batch: {together}", err=True)
        typer.echo(f"loop: {generator.prepare(together, size)}", err=True)
        job = replace(job, batch=together)
        if keep_until is not None and real is not None:
            from emfast.selection import Repair
            from emfast.selection.keep import generate_until

            selection = generate_until(
                keep_until,
                job,
                generator,
                out,
                real,
                Repair() if repair else None,
                threads=threads,
                verify=verify,
                tell=lambda text: typer.echo(text, err=True),
            )
            print(f"{selection.folder}: {selection.accepted} images; look at accepted.png there")
            return
        result = run_job(job, generator, out, part, verify)
    _print_result(out, result, steps, sampler)


def _print_result(out: Path, result: Generated, steps: int, sampler: str) -> None:
    from emfast.progress import duration

    if result.found:
        print(f"{result.found} images were there already")
    if result.drawn:
        speed = result.drawn / result.seconds
        print(
            f"{result.drawn} images at {steps} steps of {sampler} in {duration(result.seconds)} "
            f"({speed:.3g} images/s)"
        )
    if result.lacking:
        print(f"{out}: lacks {result.lacking} images, which other shards draw")
    else:
        print(f"{out}: images/, masks/, manifest.jsonl, README.md; look at {out / 'contact.png'}")
