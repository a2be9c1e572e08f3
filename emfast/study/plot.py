"""The plot of a study: Dice over the number of real slices, a line an arm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emfast.study.settings import ALL, ARMS
from engines.files import atomic_write


def plot_study(study: dict[str, Any], out: Path) -> None:
    """Draw what ``study.json`` holds as PNG; nothing where it holds no score."""
    import matplotlib.figure

    cells = [cell for cell in study["cells"] if "dice" in cell]
    if not cells:
        return
    rows = list(dict.fromkeys(cell["row"] for cell in cells))[::-1]
    figure = matplotlib.figure.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (arm, words) in enumerate(ARMS.items()):
        offset = (number - (len(ARMS) - 1) / 2) * 0.12
        own = [cell for cell in cells if cell["arm"] == arm]
        if not own:
            continue
        means = {
            entry["row"]: entry["dice"]["mean"]
            for entry in study["summary"]
            if entry["arm"] == arm and "dice" in entry
        }
        places = [(i + offset, means[row]) for i, row in enumerate(rows) if row in means]
        (line,) = axes.plot(*zip(*places, strict=True), marker="_", markersize=14, label=words)
        axes.plot(
            [rows.index(cell["row"]) + offset for cell in own],
            [cell["dice"] for cell in own],
            linestyle="none",
            marker="o",
            markersize=4,
            alpha=0.6,
            color=line.get_color(),
        )
    pool = study["data"]["pool_count"]
    axes.set_xticks(range(len(rows)), [f"{pool}" if row == ALL else row for row in rows])
    axes.set(xlabel="real slices", ylabel="Dice of the test slices, pooled")
    if study["smoke"]:
        axes.set_title("SMOKE RUN: these numbers mean nothing", color="crimson")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    with atomic_write(out) as temporary:
        figure.savefig(temporary, dpi=110)
