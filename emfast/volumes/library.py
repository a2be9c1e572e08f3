"""Libraries of formats, loaded when a file needs them, and the choice among their arrays."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from emfast.volumes.axes import shape_text
from engines.errors import UserError


def load(module: str, path: Path) -> Any:
    """Import what reads ``path``; :class:`UserError` where it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise UserError(
            f"{path}: needs {module}, which is not installed: pip install 'emfast[volumes]'"
        ) from None


def check_array(array: Any, source: str) -> None:
    """Refuse an array that cannot be a volume: of one axis, or of other values than numbers."""
    if array.dtype.kind not in "buif" or array.ndim < 2:
        noun = "axis" if array.ndim == 1 else "axes"
        raise UserError(
            f"{source}: holds {array.dtype} values in {array.ndim} {noun}; a volume has integers "
            "or floats in at least 2"
        )


def only_array(arrays: Mapping[str, Any], path: Path) -> Any:
    """The one array of a file that can be a volume.

    Args:
        arrays: of numbers in at least two axes, by their path in the file.
        path: of the file.

    Raises:
        UserError: none, or several to choose from.
    """
    # Where there are volumes, a table or a single image beside them is not meant.
    found = {name: array for name, array in arrays.items() if array.ndim > 2} or arrays
    if len(found) != 1:
        example = f"; choose one, as in {path.name}:{next(iter(found))}" if found else ""
        raise UserError(f"{path}: holds {list_arrays(found)}{example}")
    return next(iter(found.values()))


def list_arrays(arrays: Mapping[str, Any]) -> str:
    """Arrays with shape and type for messages, the first few of many."""
    texts = [f"{name} ({shape_text(a.shape)}, {a.dtype})" for name, a in arrays.items()]
    more = f" and {len(texts) - 8} more" if len(texts) > 8 else ""
    return ", ".join(texts[:8]) + more if texts else "no arrays of two or more axes"
