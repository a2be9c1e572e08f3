"""Hides modules and packages from every Python process that has this folder on PYTHONPATH.

HIDDEN_MODULES and HIDDEN_PACKAGES are names with commas between. Imports and importlib.metadata
then answer as on a machine where nobody installed them.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from typing import Any

modules = set(os.environ.get("HIDDEN_MODULES", "").split(",")) - {""}
packages = set(os.environ.get("HIDDEN_PACKAGES", "").split(",")) - {""}


class Hidden:
    """A finder that finds nothing, first in the row."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """As of importlib."""
        if name.partition(".")[0] in modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def visible(context: Any = None) -> Iterable[importlib.metadata.Distribution]:
    """All distributions but the hidden ones."""
    found = find(context) if context is not None else find()
    return [d for d in found if d.metadata["Name"].lower().replace("_", "-") not in packages]


sys.meta_path.insert(0, Hidden)  # type: ignore[arg-type]
finder: Any = importlib.metadata.MetadataPathFinder
find = finder.find_distributions
finder.find_distributions = staticmethod(visible)
