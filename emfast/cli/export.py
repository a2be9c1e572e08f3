"""``emfast export``: from a checkpoint or a diffusers pipeline to a bundle, and on to Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engines.errors import UserError

TRITON = "A repository for NVIDIA's Triton server"


def export(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A run's folder, as --out of emfast train, or a checkpoint; with --triton a "
            "segmenter's bundle, by its folder or shipped name."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the bundle; it must not exist or be empty.")
    ] = None,
    from_diffusers: Annotated[
        Path | None,
        typer.Option(
            help="Instead of SOURCE: a UNet2DModel and DDPMScheduler that diffusers saved."
        ),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(
            help="What the channels of a diffusers network hold, as in image,image,mask, which is "
            "the default for 3; image,mask is that for 2."
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="fp32, fp16 (for GPUs) or int8 (for CPUs); give it again for another. fp32 and "
            "fp16 by default."
        ),
    ] = None,
    half_io: Annotated[
        bool, typer.Option("--half-io", help="FP16 inputs and outputs; with --precision fp16.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Of the model, for people; the folder's by default.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Slices with masks to verify on and to calibrate int8 with: a folder with images/ "
            "and masks/ or a TIFF stack; the sample slice by default."
        ),
    ] = None,
    trajectory_steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of the sampling that a denoiser is verified with; all by default, which "
            "takes minutes."
        ),
    ] = None,
    pixel_size: Annotated[
        float | None,
        typer.Option(
            help="Edge of the training images' pixels in nm, 5 for EPFL: emfast segment resamples "
            "images of another pixel size."
        ),
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option(help="JSON file with scores for the manifest and the card.")
    ] = None,
    notes: Annotated[
        Path | None,
        typer.Option(help="Markdown file for the end of the card: limits, attribution."),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --out: folder of a Triton model repository; it must not exist or be "
            "empty. --precision, given once, chooses the graph.",
            rich_help_panel=TRITON,
        ),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            help="Serve a TensorRT engine and not the ONNX graph: a file of emfast engines list, "
            "or cached for the one there that fits best.",
            rich_help_panel=TRITON,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Width and height that most requests have, as in 256x256, which is the default.",
            rich_help_panel=TRITON,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Most requests that run together; 8, or what the engine takes.",
            rich_help_panel=TRITON,
        ),
    ] = None,
    queue_delay: Annotated[
        int,
        typer.Option(
            help="Longest wait of a request for others, in microseconds.", rich_help_panel=TRITON
        ),
    ] = 1000,
    instances: Annotated[
        int,
        typer.Option(help="Copies that run at once on a device.", rich_help_panel=TRITON),
    ] = 1,
    device: Annotated[str, typer.Option(help="gpu or cpu.", rich_help_panel=TRITON)] = "gpu",
) -> None:
    """Export a trained network to a bundle, FP32 and FP16, and INT8 on request.

    Every graph is compared with the PyTorch network through onnxruntime, and OpenVINO where it is
    installed, on real slices and, for a denoiser, by sampling a whole image with the same noise.
    INT8 must also keep the Dice against labels, or a small sampled set's statistics. What fails is
    not written.

    Example: emfast export runs/segmenter --out bundles/segmenter

    With --triton a segmenter's bundle becomes a model repository for NVIDIA's server instead.

    Example: emfast export epfl-segmenter --triton models
    """
    if triton is not None:
        if source is None or out is not None or from_diffusers is not None:
            raise UserError(
                "--triton takes a bundle and no --out: emfast export BUNDLE --triton DIR"
            )
        if precision is not None and len(precision) > 1:
            raise UserError("--triton serves one graph; give --precision once")
        from emfast.sizes import parse_size
        from emfast.triton.repository import TritonOptions, write_triton_repository

        wanted = TritonOptions(
            precision=precision[0] if precision else "auto",
            plan=plan,
            size=None if size is None else parse_size(size),
            max_batch=batch,
            queue_delay=queue_delay,
            instances=instances,
            device=device,
        )
        served = write_triton_repository(str(source), triton, wanted)
        typer.echo(f"{served.model.name} of {source} as {served.name} in {triton}")
        typer.echo(f"{triton / 'README.md'} says how to start the server and how to call it")
        return
    if out is None:
        raise UserError("name the bundle's folder with --out, or --triton for a model repository")

    from emfast.cli.requirements import require

    require("train", "torch", "onnx", "onnxscript", "safetensors")
    from rich.console import Console
    from rich.table import Table

    from emfast.exports import prepare, read_metrics, read_notes
    from export.bundle import DEFAULT, check_options, export_bundle

    precisions = precision or list(DEFAULT)
    check_options(out, precisions, half_io)
    text, scores = read_notes(notes), read_metrics(metrics)
    prepared = prepare(
        source,
        from_diffusers,
        name or out.resolve().name,
        channels,
        data,
        scores,
        trajectory_steps,
        pixel_size,
    )
    bundle = export_bundle(prepared, out, precisions, half_io, text)
    verification = bundle.manifest.verification
    typer.echo(f"reference: {verification['reference']}, on {verification['inputs']}")
    table = Table("precision", "measure", "value", "limit")
    for column in table.columns[2:]:
        column.justify = "right"
    for graph, result in verification["precisions"].items():
        typer.echo(f"{graph}: {result['engine']}")
        for measure in result["measures"]:
            bound = "at least" if "at_least" in measure else "at most"
            limit = f"{bound} {measure[bound.replace(' ', '_')]:g}"
            table.add_row(graph, measure["name"], f"{measure['value']:.3g}", limit)
        table.add_section()
    Console().print(table)
    typer.echo(f"{bundle.manifest.kind} exported to {bundle.path}")
