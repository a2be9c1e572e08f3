"""The report of a study: ``study.json``, ``table.md`` and ``study.png``, of all that is there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from emfast import __version__
from emfast.study.arms import RESULT
from emfast.study.plot import plot_study
from emfast.study.record import read_result, write_json
from emfast.study.settings import ALL, ARMS, REAL, ROWS
from emfast.study.sources import DENOISER, DRAWN, SELECTION
from emfast.study.statistics import paired, spread
from emfast.study.table import table
from engines.files import atomic_write

# Scores that are summarised.
METRICS = ("dice", "iou")


def write_report(folder: Path, record: dict[str, Any], command: str) -> Path:
    """Write the report of what a study's folder holds.

    Args:
        folder: of the study.
        record: settings and data.
        command: that is told.

    Returns:
        The table's file.
    """
    cells, sets = collect(folder)
    study = {
        "emfast": __version__,
        "command": command,
        "smoke": record["settings"]["smoke"],
        **record,
        "cells": cells,
        "sets": sets,
        "summary": summarise(cells),
        "not_run": not_run(cells),
    }
    write_json(folder / "study.json", study)
    path = folder / "table.md"
    with atomic_write(path) as temporary:
        temporary.write_text(table(study))
    plot_study(study, folder / "study.png")
    return path


def collect(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Results of all cells and sets of a study, in the order of the table."""
    cells, sets = [], []
    rows = sorted((p.name for p in (folder / "rows").glob("*")), key=row_order)
    for row in rows:
        place = folder / "rows" / row
        for seed in sorted(int(p.name.removeprefix("seed-")) for p in place.glob("seed-*")):
            for arm in ARMS:
                result = read_result(place / f"seed-{seed}" / arm / RESULT)
                if result is not None:
                    cells.append({"row": row, "seed": seed, "arm": arm, **result})
        for owner in (place, *sorted(place.glob("seed-*"))):
            stages = {
                name: read_result(owner / "sets" / f"{name}.json")
                for name in (DENOISER, DRAWN, SELECTION)
            }
            found = {name: result for name, result in stages.items() if result is not None}
            if found:
                sets.append({"row": row, "of": owner.name, **found})
    return cells, sets


def row_order(row: str) -> tuple[bool, int]:
    """Rows with more slices first."""
    return (row != ALL, 0 if row == ALL else -int(row))


def summarise(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, spread and paired test of each row and arm that has a score."""
    summary = []
    for row in dict.fromkeys(cell["row"] for cell in cells):
        for arm in ARMS:
            entry: dict[str, Any] = {"row": row, "arm": arm}
            for metric in METRICS:
                scores = _scores(cells, row, arm, metric)
                if not scores:
                    continue
                entry[metric] = asdict(spread(list(scores.values())))
                against = paired(scores, _scores(cells, row, REAL, metric))
                if arm != REAL and against is not None:
                    entry[f"{metric}_against_real"] = asdict(against)
            if len(entry) > 2:
                summary.append(entry)
    return summary


def not_run(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows and arms of the whole design without any score, and why."""
    missing = []
    rows = sorted({*ROWS, *(cell["row"] for cell in cells)}, key=row_order)
    for row in rows:
        for arm in ARMS:
            own = [cell for cell in cells if cell["row"] == row and cell["arm"] == arm]
            if any("dice" in cell for cell in own):
                continue
            reasons = dict.fromkeys(cell["not_possible"] for cell in own)
            missing.append({"row": row, "arm": arm, "why": "; ".join(reasons) or "not run"})
    return missing


def _scores(cells: list[dict[str, Any]], row: str, arm: str, metric: str) -> dict[int, float]:
    """Score of each seed."""
    return {
        cell["seed"]: cell[metric]
        for cell in cells
        if (cell["row"], cell["arm"]) == (row, arm) and metric in cell
    }
