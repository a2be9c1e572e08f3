"""The Python packages of TensorRT and of TensorRT for RTX, their log and their failures."""

from __future__ import annotations

import logging
from collections import deque
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from engines.cuda import Device, OutOfDeviceMemoryError, open_device
from engines.engine import EngineUnavailableError
from engines.errors import UserError

# The name of the engine and the module of its Python package.
FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}
TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}

# TensorRT repeats CUDA's state after every error; that is no news.
ECHO = "catchCudaError"

_log = logging.getLogger(__name__)


def import_tensorrt(flavour: str) -> ModuleType:
    """The Python module of a flavour.

    Args:
        flavour: one of :data:`FLAVOURS`.

    Raises:
        EngineUnavailableError: the package is missing, or its libraries do not load.
    """
    module = FLAVOURS[flavour]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            extra = EXTRAS[flavour]
            reason = f"package {module} is not installed (pip install 'emfast[{extra}]')"
            raise EngineUnavailableError(reason) from None
        raise EngineUnavailableError(f"package {module} does not load ({error})") from None
    except Exception as error:  # missing libraries surface as ImportError, OSError and others
        message = " ".join(str(error).split())
        raise EngineUnavailableError(f"package {module} does not load ({message})") from None


def check_device(flavour: str) -> Device:
    """The GPU that this process computes on, if a flavour runs on it.

    Raises:
        EngineUnavailableError: no package, no driver, no GPU or one that the flavour is not made
            for.
    """
    trt = import_tensorrt(flavour)
    device = open_device()
    # TensorRT tells at the first build; TensorRT-RTX lists what it is made for.
    targets = getattr(trt, "ComputeCapability", None)
    target = "SM" + device.compute_capability.replace(".", "")
    if targets is not None and not hasattr(targets, target):
        raise EngineUnavailableError(
            f"{TITLES[flavour]} {trt.__version__} is not made for {device.name} (compute "
            f"capability {device.compute_capability}), only for {', '.join(targets_of(trt))}"
        )
    return device


def targets_of(trt: Any) -> list[str]:
    """Compute capabilities that TensorRT-RTX builds for, as "sm86"; none for TensorRT."""
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return [name.lower() for name in members if name.startswith("SM")]


@cache
def logger(flavour: str) -> Any:
    """TensorRT's log, sent on to :mod:`logging`; ``errors`` keeps the last messages of errors.

    One for the process, as TensorRT wants it. Its notes and warnings are of use to who debugs an
    engine, and go to the DEBUG level.
    """
    trt = import_tensorrt(flavour)
    failures = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

    base: Any = trt.ILogger

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: deque[str] = deque(maxlen=20)

        def log(self, severity: Any, message: str) -> None:
            _log.debug("%s: %s", TITLES[flavour], message)
            if severity in failures:
                self.errors.append(" ".join(message.split()))

    return Logger()


def open_runtime(trt: ModuleType, flavour: str) -> Any:
    """TensorRT's runtime, with an empty list of errors.

    Raises:
        EngineUnavailableError: it does not start on this machine.
    """
    log = logger(flavour)
    log.errors.clear()
    try:
        return trt.Runtime(log)
    except TypeError:  # all that the bindings say of a runtime that CUDA did not let start
        told = reasons(flavour)
        raise EngineUnavailableError(f"{TITLES[flavour]} does not start ({told})") from None


def reasons(flavour: str) -> str:
    """The errors that TensorRT logged since this was last asked."""
    errors = logger(flavour).errors
    lines = list(dict.fromkeys(errors))
    errors.clear()
    telling = [line for line in lines if ECHO not in line]
    return "; ".join(telling or lines) or "its log gives no reason"


def failure(flavour: str, what: str) -> UserError:
    """The error of a call that TensorRT refused, with the reasons that its log gave."""
    told = reasons(flavour)
    kind = OutOfDeviceMemoryError if "out of memory" in told.lower() else UserError
    return kind(f"{TITLES[flavour]} {what} ({told})")
