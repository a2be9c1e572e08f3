"""Libraries of formats: loaded when a file needs them, their errors told in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def readable(source: Path | str) -> Iterator[None]:
    """Turn what a library raises at a damaged file into a :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{source}: may not be read") from None
    except Exception as error:  # a damaged file raises whatever its decoder raises
        reason = " ".join(str(error).split())
        raise UserError(f"{source}: cannot be read, truncated or damaged ({reason})") from None


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
