"""What a job draws, as ``job.json`` holds it: all that decides the bytes of a set.

How many threads a machine has and which engines it lacks is not in it, so that a set is the same
whoever draws it.
"""

from __future__ import annotations

import re
from typing import Any

from emfast import __version__
from emfast.diffusion.spec import DenoiserSpec
from engines.bundle import MANIFEST, SHIPPED, Bundle, shipped_bundles
from engines.engine import EngineInfo
from engines.files import sha256

# Of the set's folder.
FORMAT = 1


def describe(
    settings: dict[str, Any], bundle: Bundle, info: EngineInfo, loop: str
) -> dict[str, Any]:
    """Describe a job.

    Args:
        settings: of the job, JSON-ready: count, seed, steps and so on.
        bundle: of the denoiser.
        info: of the engine.
        loop: where the steps are taken, "device" or "host".
    """
    return {
        "format": FORMAT,
        "emfast": __version__,
        **settings,
        # The loop on the device rounds differently from the one on the host.
        "loop": loop,
        "engine": {"name": info.engine, "precision": info.precision, "runtime": info.version},
        "model": _model(bundle),
    }


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In what a job differs from the one that a folder holds, "seed was 7, is 8", one by one.

    The number of images is left out: a set may grow.
    """
    before, after = _decisive(then), _decisive(now)
    if before.get("format") != after["format"]:  # what is in it has other names
        before, after = ({"format": flat.get("format")} for flat in (before, after))
    return [
        f"{key} was {_text(before.get(key))}, is {_text(after.get(key))}"
        for key in {**after, **before}
        if before.get(key) != after.get(key)
    ]


def device_name(info: EngineInfo) -> str:
    """The device without its number of threads or among the GPUs: they do not change an image."""
    return re.sub(r", \d+ threads$| \(CUDA device \d+\)$", "", info.device)


def _decisive(record: dict[str, Any]) -> dict[str, Any]:
    """What every call of a job must agree on, flat: "engine precision" and so on."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if key == "model" and isinstance(value, dict):
            # Its hash covers the rest.
            flat |= {"model": value.get("name"), "model sha256": value.get("sha256")}
        elif key == "selection":
            flat[key] = value["command"]
        elif isinstance(value, dict):
            flat |= {f"{key} {name}": entry for name, entry in value.items()}
        elif key != "count":
            flat[key] = value
    return flat


def _text(value: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, list):
        return " x ".join(str(item) for item in value)
    return str(value)


def _model(bundle: Bundle) -> dict[str, Any]:
    """Which model it is, and what the card of a set tells of it."""
    manifest = bundle.manifest
    name = manifest.name
    shipped = name in shipped_bundles() and sha256(SHIPPED / name / MANIFEST) == bundle.sha256
    return {
        "name": name,
        "sha256": bundle.sha256,
        "shipped": shipped,
        "classes": sum(c.kind == "mask" for c in DenoiserSpec.from_dict(manifest.model).channels),
        "terms": _terms(bundle),
        "metrics": manifest.metrics,
    }


def _terms(bundle: Bundle) -> str | None:
    """What the bundle's card says under the heading that names the licence."""
    card = bundle.path / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8")
    found = re.search(r"(?ims)^## [^\n]*licen[cs]e[^\n]*\n(.*?)(?=^## |\Z)", text)
    return found[1].strip() if found else None
