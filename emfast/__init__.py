"""Labelled synthetic EM images and fast segmentation of mitochondria.

Public classes are imported when they are first used, so that ``import emfast`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emfast.data.stack import Stack as Stack
    from emfast.data.stack import read_stack as read_stack
    from emfast.segmentation.segmenter import Segmenter as Segmenter
    from emfast.synthesis.denoiser import Generator as Generator
    from engines.errors import UserError as UserError

__version__ = "0.1.0"

_PUBLIC = {
    "Generator": "emfast.synthesis.denoiser",
    "Segmenter": "emfast.segmentation.segmenter",
    "Stack": "emfast.data.stack",
    "UserError": "engines.errors",
    "read_stack": "emfast.data.stack",
}

__all__ = ["Generator", "Segmenter", "Stack", "UserError", "__version__", "read_stack"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
