"""``emfast train``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emfast.cli.requirements import require

if TYPE_CHECKING:
    from emfast.data.stack import Stack

app = typer.Typer(
    no_args_is_help=True,
    help="Train a network on an EM stack with masks.\n\n"
    "Example: emfast train segmenter --data epfl --out runs/segmenter",
)

Data = Annotated[
    Path, typer.Option(help="Stack with masks: a folder with images/ and masks/, or EPFL's TIFFs.")
]
Out = Annotated[Path, typer.Option(help="Run folder; a run that it holds goes on.")]
Masks = Annotated[
    Path | None, typer.Option(help="Masks that are not beside the images; named like the slices.")
]
Preset = Annotated[str, typer.Option(help="paper (the seed paper's settings) or default (ours).")]
HoldOut = Annotated[
    str | None,
    typer.Option(
        help="Slices kept out of training, such as 140-164, numbered from 0; where --masks has "
        "only some slices', these are numbered."
    ),
]
Gap = Annotated[
    int,
    typer.Option(
        min=0, help="With --hold-out: slices left unused on both sides of the held-out block."
    ),
]
Iterations = Annotated[
    int | None,
    typer.Option(min=1, help="Optimizer steps; a run that goes on may get another number."),
]
Rate = Annotated[float | None, typer.Option("--learning-rate", help="Peak learning rate.")]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Crops in a batch, all of one side (--crop).")
]
Crop = Annotated[int | None, typer.Option(min=1, help="Side of the training crops in pixels.")]
Seed = Annotated[int | None, typer.Option(help="Decides weights, batches and noise.")]
Init = Annotated[
    Path | None,
    typer.Option(
        help="Start from the averaged weights of another run, its folder or checkpoint, to "
        "fine-tune it."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all processors by default.")]


@app.command()
def denoiser(
    data: Data,
    out: Out,
    masks: Masks = None,
    preset: Preset = "default",
    hold_out: HoldOut = None,
    gap: Gap = 5,
    iterations: Iterations = None,
    learning_rate: Rate = None,
    batch: Batch = None,
    crop: Crop = None,
    sample_every: Annotated[
        int | None, typer.Option(min=1, help="Iterations between samples drawn during training.")
    ] = None,
    init: Init = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train the network that draws images and masks.

    Killed, it goes on from its last checkpoint when the same command is given again.

    Example: emfast train denoiser --data epfl --hold-out 140-164 --out runs/denoiser
    """
    require("train", "torch", "safetensors", "matplotlib")
    from emfast.training.denoiser import train_denoiser
    from emfast.training.device import open_device
    from emfast.training.presets import denoiser_preset

    settings = denoiser_preset(preset).override(
        iterations=iterations,
        learning_rate=learning_rate,
        sample_every=sample_every,
        seed=seed,
    )
    settings = _set_crops(settings, crop, batch)
    stack, _, facts = _read(data, masks, hold_out, gap)
    trainer = train_denoiser(settings, stack, facts, out, open_device(device, threads), init)
    print(f"done: {trainer.iteration} iterations; export it with: emfast export {out} --out BUNDLE")


@app.command()
def segmenter(
    data: Data,
    out: Out,
    masks: Masks = None,
    preset: Preset = "default",
    hold_out: HoldOut = None,
    gap: Gap = 5,
    iterations: Iterations = None,
    learning_rate: Rate = None,
    batch: Batch = None,
    crop: Crop = None,
    network: Annotated[
        str | None, typer.Option(help="light (1 976 897 parameters) or full.")
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(min=1, help="Iterations between scores on the held-out slices.")
    ] = None,
    init: Init = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train the network that segments.

    Killed, it goes on from its last checkpoint when the same command is given again.

    Example: emfast train segmenter --data epfl --hold-out 140-164 --out runs/segmenter
    """
    require("train", "torch", "safetensors", "matplotlib")
    from emfast.training.device import open_device
    from emfast.training.presets import segmenter_preset
    from emfast.training.segmenter import train_segmenter

    settings = segmenter_preset(preset).override(
        iterations=iterations,
        learning_rate=learning_rate,
        network=network,
        validate_every=validate_every,
        seed=seed,
    )
    settings = _set_crops(settings, crop, batch)
    stack, held_out, facts = _read(data, masks, hold_out, gap)
    where = open_device(device, threads)
    trainer = train_segmenter(settings, stack, held_out, facts, out, where, init)
    print(f"done: {trainer.iteration} iterations; export it with: emfast export {out} --out BUNDLE")


def _set_crops(settings: Any, crop: int | None, batch: int | None) -> Any:
    """Replace the preset's crops where another side or number is asked for."""
    if crop is None and batch is None:
        return settings
    side, count = settings.crops[0]
    side, count = side if crop is None else crop, count if batch is None else batch
    return settings.override(crops=((side, count),))


def _read(
    data: Path, masks: Path | None, hold_out: str | None, gap: int
) -> tuple[Stack, Stack | None, dict[str, Any]]:
    """The training slices, the held-out slices and a description of both."""
    from emfast.data.split import holdout_split, parse_slices
    from emfast.data.stack import read_stack

    stack = read_stack(data, masks)
    stack.labels()
    training = list(range(len(stack)))
    held_out: list[int] = []
    if hold_out is not None:
        training, held_out = holdout_split(len(stack), parse_slices(hold_out, len(stack)), gap)
    digest = hashlib.sha256(stack.images.data)
    digest.update(stack.labels().data)
    facts = {
        "slices": [stack.names[i] for i in training],
        "held_out": [stack.names[i] for i in held_out],
        "size": list(stack.images.shape[1:]),
        "sha256": digest.hexdigest(),
    }
    named = f" ({facts['held_out'][0]} to {facts['held_out'][-1]})" if held_out else ""
    print(f"{len(training)} slices to train on, {len(held_out)} held out{named}, from {data}")
    return stack.select(training), stack.select(held_out) if held_out else None, facts
