"""``emfast export``: from a checkpoint or a diffusers pipeline to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    out: Annotated[Path, typer.Option(help="Folder of the bundle; it must not exist or be empty.")],
    source: Annotated[
        Path | None,
        typer.Argument(help="A run's folder, as --out of emfast train, or a checkpoint."),
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
    metrics: Annotated[
        Path | None, typer.Option(help="JSON file with scores for the manifest and the card.")
    ] = None,
    notes: Annotated[
        Path | None,
        typer.Option(help="Markdown file for the end of the card: limits, attribution."),
    ] = None,
) -> None:
    """Export a trained network to a bundle, FP32 and FP16, and INT8 on request.

    Every graph is compared with the PyTorch network through onnxruntime, and OpenVINO where it is
    installed, on real slices and, for a denoiser, by sampling a whole image with the same noise.
    INT8 must also keep the Dice against labels, or a small sampled set's statistics. What fails is
    not written.

    Example: emfast export runs/segmenter --out bundles/segmenter
    """
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
        source, from_diffusers, name or out.resolve().name, channels, data, scores, trajectory_steps
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
