"""The results of a benchmark as a table for a terminal, for Markdown, and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.files import atomic_write

COLUMNS = (
    "who",
    "batch",
    "ms a step and image",
    "p90",
    "p99",
    "images/s at 700 steps",
    "times the first",
    "outside the network",
    "share of matmul",
    "memory, MB",
)


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row for each result, in the order of :data:`COLUMNS`."""
    results = report["results"]
    first = results[0]["images_per_second"]
    return [
        (
            result["label"],
            str(result["batch"]),
            f"{result['step_ms'] / result['batch']:.1f}",
            f"{result['p90_ms'] / result['batch']:.1f}",
            f"{result['p99_ms'] / result['batch']:.1f}",
            f"{result['images_per_second']:.4g}",
            f"{result['images_per_second'] / first:.1f}",
            percent(result["outside"]),
            percent(result["matmul_share"]),
            f"{result['peak_memory'] / 1e6:.0f}",
        )
        for result in results
    ]


def markdown(report: dict[str, Any]) -> str:
    """The table in Markdown, with the machine above it."""
    return f"{machine_line(report)}\n\n{markdown_table(COLUMNS, rows(report))}"


def machine_line(report: dict[str, Any]) -> str:
    """What a benchmark ran on, as one sentence."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    places = ", ".join(
        [f"{machine['cpu']}, {machine['processors']} threads", *machine.get("gpus", [])]
    )
    return (
        f"{places}; {versions}; one float32 matrix product reached "
        f"{machine['float32_matmul_gflops']} GFLOP/s."
    )


def markdown_table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its first column to the left and the others to the right."""
    lines = [
        f"| {' | '.join(columns)} |",
        f"|---|{'---:|' * (len(columns) - 1)}",
        *(f"| {' | '.join(row)} |" for row in body),
    ]
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Images a second of each contestant as bars, on a logarithmic axis.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    results = report["results"]
    figure = Figure(figsize=(8, 1 + 0.5 * len(results)), layout="constrained")
    axes = figure.subplots()
    values = [result["images_per_second"] for result in results]
    bars = axes.barh([result["label"] for result in results], values)
    axes.bar_label(bars, [f" {value:.3g}" for value in values])
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("images/s at 700 steps, 256 x 256")
    axes.margins(x=0.2)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage; empty where it is unknown."""
    return "" if share is None else f"{100 * share:.1f} %"
