"""The loss plot of a run."""

from __future__ import annotations

import csv
from pathlib import Path

from engines.files import atomic_write


def plot_log(log: Path, out: Path) -> None:
    """Draw every loss column of a run's ``log.csv`` over the iterations, smoothed, as PNG."""
    if not log.exists():
        return
    import matplotlib.figure
    import numpy as np

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    iterations = [int(row["iteration"]) for row in rows]
    figure = matplotlib.figure.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    window = max(1, len(rows) // 50)
    for name in list(rows[0])[3:]:
        values = np.array([float(row[name]) for row in rows])
        (line,) = axes.plot(iterations, values, alpha=0.25, linewidth=0.8)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(iterations[window - 1 :], smooth, color=line.get_color(), label=name)
    axes.set(xlabel="iteration", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(out) as temporary:
        figure.savefig(temporary, dpi=100)
