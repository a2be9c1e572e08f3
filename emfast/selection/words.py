"""A selection in words: why an image was rejected, and the command that selects."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import fields

from emfast.selection.rules import REASONS, Rules
from emfast.selection.scores import Scores


def reason_text(reason: str, scores: Scores, rules: Rules, repair: bool) -> str:
    """A reason with its number and the limit, short enough to stand under an image.

    Args:
        reason: of :data:`emfast.selection.rules.REASONS`.
        scores: of the image.
        rules: with a number for every threshold.
        repair: whether masks are repaired.
    """
    mask = scores.of_mask(repair)
    near = scores.nearest
    return {
        "copy": f"similarity {near.similarity:.3f} (most {rules.similarity:.3f}) to {near.slice}",
        "features": f"feature distance {scores.distance:.2f} (most {rules.distance:.2f})",
        "agreement": f"agreement {mask.agreement:.2f} (least {rules.agreement:.2f})",
        "specks": f"specks: {mask.specks} (most {rules.specks})",
        "area": f"area {mask.area:.3f} (most {rules.area:.3f})",
        "objects": f"objects: {mask.objects} (most {rules.objects})",
        "cut": f"objects cut: {mask.cut} (most {rules.cut})",
        "rank": f"not among the best {100 * (rules.best or 0):.3g} %",
        "match": "more of its area and count than in real tiles",
    }[reason]


def scores_text(scores: Scores, repair: bool, told: Collection[str] = ()) -> tuple[str, ...]:
    """Scores of an image in two lines or fewer.

    Args:
        scores: of the image.
        repair: whether masks are repaired.
        told: reasons of which :func:`reason_text` has told the score.
    """
    mask = scores.of_mask(repair)
    if mask.area:
        agreement = f"agreement {mask.agreement:.2f}"
    elif mask.agreement == 1:
        agreement = "no objects, none seen"
    else:
        agreement = f"no objects, {100 * mask.disagreement:.2g} % seen"
    lines = (
        {"agreement": agreement, "area": f"area {mask.area:.3f}"},
        {
            "features": f"feature distance {scores.distance:.2f}",
            "copy": f"similarity {scores.nearest.similarity:.2f}",
        },
    )
    texts = (", ".join(t for name, t in parts.items() if name not in told) for parts in lines)
    return tuple(text for text in texts if text)


def reasons_text(reasons: Mapping[str, int]) -> str:
    """How many images each reason speaks against, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    return "; ".join(f"{REASONS[name]}: {count}" for name, count in ordered)


def command(rules: Rules, repair: bool, options: dict[str, str]) -> str:
    """The command that makes this selection of a set.

    Args:
        rules: as they were given, before they were settled.
        repair: whether masks are repaired.
        options: others that were given, by name.
    """
    words = ["emfast", "select", "SET", "--real", "REAL", "--out", "SELECTED"]
    for field in fields(rules):
        value = getattr(rules, field.name)
        if value != field.default:
            words.append(f"--{field.name}")
            words += [] if value is True else [str(value)]
    words += ["--repair"] if repair else []
    for name, value in options.items():
        words += [f"--{name}", value]
    return shlex.join(words)
