"""The results of the segmentation benchmark as tables and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emfast.benchmark.table import machine_line, markdown_table, percent
from engines.files import atomic_write

COLUMNS = ("who", "p50, ms", "p90", "p99", "slices/s", "times the first", "share of matmul")
STACK_COLUMNS = ("who", "seconds", "slices/s", "times the first", "memory, MB")
KINDS = {"engine": "engine only", "files": "TIFF to TIFF"}
Row = tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """One table of the report.

    Attributes:
        title: what all of it was measured at.
        columns: their names; the first is left-aligned.
        rows: one for each contestant; others are compared with the first of them.
    """

    title: str
    columns: Row
    rows: Sequence[Row]


def sections(report: dict[str, Any]) -> list[Section]:
    """The stack, where there is one, then every size, kind and batch."""
    found = (
        [_stack_section(report["stack"], report["settings"]["stack"])] if report["stack"] else []
    )
    cases: dict[str, list[dict[str, Any]]] = {}
    for result in report["results"]:
        cases.setdefault(_title(result), []).append(result)
    for title, results in cases.items():
        rows = [
            (
                result["label"],
                f"{result['p50_ms']:.3g}",
                f"{result['p90_ms']:.3g}",
                f"{result['p99_ms']:.3g}",
                f"{result['slices_per_second']:.3g}",
                f"{result['slices_per_second'] / results[0]['slices_per_second']:.1f}",
                percent(result["matmul_share"]),
            )
            for result in results
        ]
        found.append(Section(title, COLUMNS, rows))
    return found


def _title(result: dict[str, Any]) -> str:
    kind, batch = KINDS[result["kind"]], result["batch"]
    together = f", {batch} slices at once" if batch > 1 else ""
    return f"{result['width']} x {result['height']}, {kind}{together}"


def _stack_section(results: list[dict[str, Any]], name: str) -> Section:
    rows = [
        (
            result["label"],
            f"{result['seconds']:.1f}",
            f"{result['slices'] / result['seconds']:.3g}",
            f"{results[0]['seconds'] / result['seconds']:.1f}",
            f"{result['peak_memory'] / 1e6:.0f}",
        )
        for result in results
    ]
    title = f"{name}, {results[0]['slices']} slices, {KINDS['files']}"
    return Section(title, STACK_COLUMNS, rows)


def markdown(report: dict[str, Any]) -> str:
    """The machine and all sections in Markdown."""
    parts = [machine_line(report) + "\n"]
    for section in sections(report):
        parts += [f"**{section.title}**\n", markdown_table(section.columns, section.rows)]
    return "\n".join(parts)


def plot(report: dict[str, Any], path: Path) -> None:
    """Median milliseconds a slice as bars, one panel for each size and batch, and one for the
    seconds of the stack.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    panels = _panels(report)
    most = max(len(values) for _, values in panels)
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(7 * columns, lines * (1 + 0.35 * most)), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (title, values) in zip(grid, panels, strict=False):
        bars = axes.barh([label for label, _ in values], [value for _, value in values])
        axes.bar_label(bars, [f" {value:.3g}" for _, value in values])
        axes.invert_yaxis()
        axes.set_xlabel(title)
        axes.margins(x=0.2)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def _panels(report: dict[str, Any]) -> Sequence[tuple[str, list[tuple[str, float]]]]:
    """Titles, and labels with values, of all panels."""
    panels: dict[str, list[tuple[str, float]]] = {}
    for result in report["results"]:
        title = f"ms a slice: {_title(result)}"
        value = result["p50_ms"] / result["batch"]
        panels.setdefault(title, []).append((result["label"], value))
    for result in report["stack"]:
        title = f"seconds: {result['slices']} slices, {KINDS['files']}"
        panels.setdefault(title, []).append((result["label"], result["seconds"]))
    return list(panels.items())
