"""Paths as every machine of a cluster understands them."""

from __future__ import annotations

from pathlib import Path

from engines.bundle import shipped_bundles


def bundle_path(model: str) -> str:
    """The name of a shipped bundle as it is; the folder of another one as an absolute path."""
    return model if model in shipped_bundles() else str(Path(model).absolute())


def source_path(source: str) -> str:
    """A volume as an absolute path; an array behind a colon stays where it is."""
    return str(Path(source).absolute())
