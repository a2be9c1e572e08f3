# ruff: noqa: N801, N802, N818
"""NVML of a machine with the GPUs that FAKE_GPUS lists, as JSON.

Each has "name", "uuid", "capability" (two numbers), "memory" (bytes or null), and MIG slices of it
under "mig" by UUID. FAKE_NVML_ERROR is the code of an error at the start.
"""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

NVML_ERROR_NOT_FOUND = 6
NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_LIBRARY_NOT_FOUND = 12
NVML_ERROR_GPU_IS_LOST = 15
NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18


class NVMLError(Exception):
    """As of nvidia-ml-py."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return {6: "Not Found", 15: "GPU is lost"}.get(self.value, f"error {self.value}")


class NVMLError_NotSupported(NVMLError):
    """As of nvidia-ml-py."""


def _gpus() -> list[dict[str, Any]]:
    gpus: list[dict[str, Any]] = json.loads(os.environ.get("FAKE_GPUS", "[]"))
    return gpus


def nvmlInit() -> None:
    if code := int(os.environ.get("FAKE_NVML_ERROR", "0")):
        raise NVMLError(code)


def nvmlShutdown() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index: int) -> dict[str, Any]:
    return _gpus()[index]


def nvmlDeviceGetHandleByUUID(uuid: str) -> dict[str, Any]:
    for gpu in _gpus():
        if uuid in gpu.get("mig", {}):
            return {**gpu["mig"][uuid], "uuid": uuid, "parent": gpu}
    raise NVMLError(NVML_ERROR_NOT_FOUND)


def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle: dict[str, Any]) -> dict[str, Any]:
    parent: dict[str, Any] = handle["parent"]
    return parent


def nvmlDeviceGetUUID(handle: dict[str, Any]) -> str:
    return str(handle["uuid"])


def nvmlDeviceGetName(handle: dict[str, Any]) -> str:
    return str(handle["name"])


def nvmlDeviceGetCudaComputeCapability(handle: dict[str, Any]) -> list[int]:
    return list(handle["capability"])


def nvmlDeviceGetMemoryInfo(handle: dict[str, Any]) -> SimpleNamespace:
    if handle.get("lost"):
        raise NVMLError(NVML_ERROR_GPU_IS_LOST)
    if handle["memory"] is None:
        raise NVMLError_NotSupported(NVML_ERROR_NOT_SUPPORTED)
    return SimpleNamespace(total=handle["memory"], free=handle["memory"] - 1_000_000_000)


def nvmlSystemGetDriverVersion() -> str:
    return os.environ.get("FAKE_DRIVER", "580.65.06")


def nvmlSystemGetCudaDriverVersion_v2() -> int:
    return int(os.environ.get("FAKE_CUDA", "13000"))
