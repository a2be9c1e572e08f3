"""The card of a bundle: its manifest for people, as Markdown."""

from __future__ import annotations

from typing import Any

from engines.bundle import Manifest

# Longer lists are told by their ends and their length.
LIST = 8


def card(manifest: Manifest, notes: str = "") -> str:
    """Write a bundle's card.

    Args:
        manifest: whole but for ``files``.
        notes: Markdown that follows the facts: limits, attribution.
    """
    graphs = ", ".join(f"`{name}` ({p.upper()})" for p, name in manifest.graphs.items())
    parts = [
        f"# {manifest.name}",
        f"A {manifest.kind}, exported by emfast {manifest.emfast}: {graphs}. Height and width are "
        f"multiples of {manifest.multiple}.",
        _tensors(manifest),
    ]
    if manifest.training:
        parts += ["## Training", _facts(manifest.training)]
    if manifest.metrics:
        parts += ["## Scores", _facts(manifest.metrics)]
    if manifest.verification:
        parts += ["## Verification", _verification(manifest.verification)]
    if notes:
        parts.append(notes.strip())
    return "\n\n".join(parts) + "\n"


def _tensors(manifest: Manifest) -> str:
    rows = ["| | shape | type | meaning |", "|---|---|---|---|"]
    for direction, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            shape = " x ".join(str(size) for size in spec.shape)
            rows.append(f"| {direction} `{spec.name}` | {shape} | {spec.dtype} | {spec.meaning} |")
    return "\n".join(rows)


def _facts(values: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines.append(f"{indent}- {key}:")
            lines.append(_facts(value, indent + "  "))
        elif isinstance(value, float):
            lines.append(f"{indent}- {key}: {value:.6g}")
        elif isinstance(value, list) and len(value) > LIST:
            lines.append(f"{indent}- {key}: {value[0]} ... {value[-1]} ({len(value)})")
        else:
            lines.append(f"{indent}- {key}: {value}")
    return "\n".join(lines)


def _verification(values: dict[str, Any]) -> str:
    parts = [
        f"Every graph was compared with {values['reference']}, on {values['inputs']}. Errors of "
        "outputs are relative to the root mean square of the reference's."
    ]
    if "calibration" in values:
        parts.append(f"The INT8 graph was calibrated on {values['calibration']}.")
    for result in values["precisions"].values():
        rows = [f"{result['engine']}:", "", "| measure | value | limit |", "|---|---|---|"]
        for measure in result["measures"]:
            bound = "at_least" if "at_least" in measure else "at_most"
            limit = f"{bound.replace('_', ' ')} {measure[bound]:g}"
            rows.append(f"| {measure['name']} | {measure['value']:.3g} | {limit} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)
