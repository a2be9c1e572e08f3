"""The charts of a report, as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from emfast.quality.grey import LEVELS, Counts
from emfast.quality.texture import Floats, decibels

REAL, SYNTHETIC, OTHER = "#2a6f97", "#d1495b", "#8a8f98"
BINS = 25
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 11,
    "svg.fonttype": "none",
    "svg.hashsalt": "emfast",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#333333",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
}


def grey_chart(real: Counts, synthetic: Counts) -> str:
    """Share of the pixels at each grey level, as the paper's figures 5 and 6.

    Args:
        real, synthetic: int64 (256,).
    """

    def draw(axes: Axes) -> None:
        for counts, color, label in ((real, REAL, "real"), (synthetic, SYNTHETIC, "synthetic")):
            shares = counts / max(1, counts.sum())
            axes.plot(np.arange(LEVELS), shares, color=color, label=label)
            axes.fill_between(np.arange(LEVELS), shares, color=color, alpha=0.15, linewidth=0)
        axes.set(xlim=(0, LEVELS - 1), ylim=(0, None), xlabel="grey level")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        axes.set_ylabel("share of pixels")

    return _svg(draw)


def spectrum_chart(real: Floats, synthetic: Floats, side: int) -> str:
    """Mean power spectra over the spatial frequency.

    Args:
        real, synthetic: as from :func:`~emfast.quality.measures.mean_spectrum`.
        side: of the images, in pixels.
    """

    def draw(axes: Axes) -> None:
        frequency, unit = np.arange(1, len(real) + 1) / side, np.ones(len(real))
        axes.plot(frequency, decibels(real, unit), color=REAL, label="real")
        axes.plot(frequency, decibels(synthetic, unit), color=SYNTHETIC, label="synthetic")
        axes.set(xlabel="periods a pixel", ylabel="power in dB")
        _logarithmic(axes)

    return _svg(draw)


def decibel_chart(sets: Sequence[tuple[str, str, Floats]], reference: Floats, side: int) -> str:
    """How many decibels mean power spectra lie above a reference.

    Args:
        sets: name, colour and spectrum of each.
        reference: a mean spectrum too.
        side: of the images, in pixels.
    """

    def draw(axes: Axes) -> None:
        frequency = np.arange(1, len(reference) + 1) / side
        for name, color, spectrum in sets:
            axes.plot(frequency, decibels(spectrum, reference), color=color, label=name)
        axes.axhline(0, color="#333333", linewidth=1)
        axes.set(xlabel="periods a pixel", ylabel="difference in dB")
        _logarithmic(axes)

    return _svg(draw)


def shares_chart(
    sets: Sequence[tuple[str, str, Sequence[float]]],
    label: str,
    span: tuple[float, float],
    mark: float | None = None,
    percent: bool = False,
    logarithmic: bool = False,
) -> str:
    """Histograms of one quantity, each over its own total.

    Args:
        sets: name, colour and values of each.
        label: of the quantity.
        span: lowest and highest value.
        mark: value at which a line is drawn.
        percent: whether the quantity is a share.
        logarithmic: whether its axis is.
    """

    def draw(axes: Axes) -> None:
        edges: npt.NDArray[np.float64] = (
            np.geomspace(*span, BINS + 1) if logarithmic else np.linspace(*span, BINS + 1)
        )
        for name, color, values in sets:
            heights, _ = np.histogram(np.clip(values, *span), edges)
            axes.stairs(
                heights / max(1, len(values)), edges, color=color, label=name, linewidth=1.5
            )
            axes.stairs(heights / max(1, len(values)), edges, color=color, alpha=0.15, fill=True)
        if mark is not None:
            axes.axvline(mark, color="#333333", linewidth=1, linestyle="--")
        if logarithmic:
            _logarithmic(axes)
        if percent:
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set(xlim=span, ylim=(0, None), xlabel=label, ylabel="share")

    return _svg(draw)


def _logarithmic(axes: Axes) -> None:
    """A logarithmic x axis with plain numbers: 0.01, 1, 100."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _svg(draw: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 3.0))
        axes = figure.add_axes((0.15, 0.17, 0.82, 0.8))
        draw(axes)
        axes.legend()
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    return file.getvalue()
