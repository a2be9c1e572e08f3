"""TensorRT engines, built ahead and run with CUDA graphs."""

from engines.tensorrt.engine import TensorRTEngine
from engines.tensorrt.library import (
    FLAVOURS,
    TITLES,
    failure,
    import_tensorrt,
    logger,
    reasons,
)

__all__ = [
    "FLAVOURS",
    "TITLES",
    "TensorRTEngine",
    "failure",
    "import_tensorrt",
    "logger",
    "reasons",
]
