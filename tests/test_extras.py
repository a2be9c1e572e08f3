"""Extras that messages and pages name are extras that can be installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# As in pip install 'emfast[cpu,server]' and pip install '.[gpu]'; what a message fills in is not.
NAMED = re.compile(r"(?:emfast|['\"]\.)\[([a-z][a-z,]*)\]")
REQUIRED = re.compile(r"\brequire\(\"([a-z]+)\"")


def named_extras() -> dict[str, set[str]]:
    """Where each extra is named."""
    sources = [*(p for f in ("emfast", "engines", "export") for p in (ROOT / f).rglob("*.py"))]
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    found: dict[str, set[str]] = {}
    for path in (*sources, *pages, ROOT / "pyproject.toml"):
        text = path.read_text(encoding="utf-8")
        for names in (*NAMED.findall(text), *REQUIRED.findall(text)):
            for name in names.split(","):
                found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def test_every_extra_that_is_named_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    named = named_extras()
    assert {"cpu", "gpu", "mnn", "openvino", "volumes", "triton"} <= set(named)
    assert {name: sorted(where) for name, where in named.items() if name not in extras} == {}
