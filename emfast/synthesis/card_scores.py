"""The scores on the card of a set."""

from __future__ import annotations

from typing import Any

from emfast.quality.image_scores import SPECK
from emfast.synthesis.markdown import paragraph, table
from emfast.synthesis.summary import Summary

# A group of scores in a bundle's metrics that the card puts beside the set's: "count" and "size" of
# the tiles, "area_fraction", "components", "specks", "cut" and "empty" as in report.json, and
# "grey_mean" and "grey_deviation". All may be missing.
REAL = "real tiles"


def score_tables(model: dict[str, Any], summary: Summary) -> str:
    """The scores of a set beside those of real tiles, then those that the bundle tells.

    Args:
        model: what ``job.json`` says of it.
        summary: of all images of the set.
    """
    metrics = dict(model["metrics"])
    real = metrics.pop(REAL, {})
    scores = _rows(summary, real)
    if real:
        told = table(("", "this set", "real tiles"), scores)
        about = " The bundle tells the scores of real tiles."
        if "count" in real and "size" in real:
            about = (
                f" The bundle tells the scores of {real['count']} real tiles of {real['size']} x "
                f"{real['size']} pixels."
            )
    else:
        told = table(("", "this set"), [row[:2] for row in scores])
        about = " The bundle tells no such scores of real tiles."
    parts = [
        told,
        paragraph(
            f"Means over images, in parentheses their standard deviation.{about} The scores of "
            "every image are in `manifest.jsonl` and `metadata.jsonl`."
        ),
    ]
    others = _metrics(metrics)
    if others:
        parts.append(
            "What the bundle tells of the model, measured on other sets; emfast's docs/report.md "
            f"explains the scores:\n\n{others}"
        )
    return "\n\n".join(parts)


def _rows(summary: Summary, real: dict[str, float]) -> list[tuple[str, str, str]]:
    components = summary.sums["components"]

    def spread(name: str, digits: int, scale: float = 1, unit: str = "") -> str:
        mean, deviation = scale * summary.mean(name), scale * summary.deviation(name)
        return f"{mean:.{digits}f}{unit} ({deviation:.{digits}f})"

    def share(name: str) -> str:
        return f"{100 * summary.sums[name] / components:.1f} %" if components else "no components"

    def of_real(name: str, digits: int, scale: float = 1, unit: str = "") -> str:
        return f"{scale * real[name]:.{digits}f}{unit}" if name in real else ""

    return [
        (
            "area of the mask",
            spread("mask_area", 2, 100, " %"),
            of_real("area_fraction", 2, 100, " %"),
        ),
        ("components an image", spread("components", 2), of_real("components", 2)),
        (
            f"components below {SPECK} pixels, specks",
            share("specks"),
            of_real("specks", 1, 100, " %"),
        ),
        ("components cut by the border", share("border"), of_real("cut", 1, 100, " %")),
        (
            "images with an empty mask",
            f"{100 * summary.empty / summary.images:.1f} %",
            of_real("empty", 1, 100, " %"),
        ),
        ("mean grey", spread("grey_mean", 1), of_real("grey_mean", 1)),
        (
            "standard deviation of an image's greys",
            spread("grey_deviation", 1),
            of_real("grey_deviation", 1),
        ),
    ]


def _metrics(metrics: dict[str, Any]) -> str:
    """The scores that a bundle holds as a table; empty unless they are groups of numbers."""
    groups = {name: values for name, values in metrics.items() if isinstance(values, dict)}
    names = dict.fromkeys(name for values in groups.values() for name in values)
    if not names:
        return ""
    rows = [(name, *(group.get(name, "") for group in groups.values())) for name in names]
    return table(("", *groups), rows)
