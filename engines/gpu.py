"""The NVIDIA GPUs that this process sees, as the driver tells through NVML.

NVML comes with the driver and answers in milliseconds without a CUDA context. It knows nothing of
CUDA_VISIBLE_DEVICES, which is applied here by the rules of the CUDA C++ Programming Guide.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from engines.engine import EngineUnavailableError

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG slice of it.

    Attributes:
        index: among those that this process sees. It is CUDA's number where
            :func:`doubtful_order` has no objection.
        name: "NVIDIA H100 80GB HBM3".
        uuid: "GPU-..." or "MIG-...".
        compute_capability: major and minor.
        memory: in bytes; 0 where the driver does not tell, as for memory shared with the CPU.
        free: bytes of it that no process holds.
        driver: its version, "580.65.06".
        cuda: newest CUDA that the driver takes, "13.0".
    """

    index: int
    name: str
    uuid: str
    compute_capability: tuple[int, int]
    memory: int
    free: int
    driver: str
    cuda: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {**asdict(self), "compute_capability": "{}.{}".format(*self.compute_capability)}


class NoGpuError(EngineUnavailableError):
    """No GPU for this process; the message is the reason in one line."""


def gpus() -> list[Gpu]:
    """The GPUs that this process sees.

    Raises:
        NoGpuError: there is none; the message tells a missing driver, one that does not answer, a
            machine without a GPU, and GPUs that CUDA_VISIBLE_DEVICES hides.
    """
    with _nvml() as nvml:
        whole = _whole(nvml)
        handles = _visible(nvml, whole, os.environ.get(VISIBLE))
        return [_describe(nvml, index, handle) for index, handle in enumerate(handles)]


def doubtful_order() -> str | None:
    """Why the order of :func:`gpus` may not be CUDA's, in one line; None where it is the same.

    CUDA numbers the fastest GPU 0 unless CUDA_DEVICE_ORDER is PCI_BUS_ID; NVML goes by PCI bus.

    Raises:
        NoGpuError: as :func:`gpus`.
    """
    if os.environ.get(ORDER) == "PCI_BUS_ID":
        return None
    with _nvml() as nvml:
        names = dict.fromkeys(nvml.nvmlDeviceGetName(handle) for handle in _whole(nvml))
    if len(names) == 1:
        return None
    return (
        f"GPUs of different models ({', '.join(names)}), which CUDA numbers by speed and "
        f"nvidia-smi by slot; set {ORDER}=PCI_BUS_ID to have the numbers of nvidia-smi"
    )


@contextmanager
def _nvml() -> Iterator[ModuleType]:
    """NVML between its start and its end; its errors become :class:`NoGpuError`."""
    try:
        nvml = import_module("pynvml")
    except ModuleNotFoundError:
        raise NoGpuError(
            "the Python package nvidia-ml-py is missing, which asks the driver for GPUs; install "
            "it: pip install nvidia-ml-py"
        ) from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise NoGpuError(_start_reason(nvml, error)) from None
    try:
        yield nvml
    except nvml.NVMLError as error:
        raise NoGpuError(f"the NVIDIA driver does not answer ({error})") from None
    finally:
        nvml.nvmlShutdown()


def _start_reason(nvml: ModuleType, error: Exception) -> str:
    code = error.value  # type: ignore[attr-defined]
    if code == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return "no NVIDIA driver on this machine (libnvidia-ml.so.1 is not found)"
    if code == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return "the NVIDIA driver is installed, but its kernel module is not loaded"
    if code == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return (
            "the NVIDIA driver was updated while its old kernel module is still loaded; restart "
            "the machine"
        )
    return f"the NVIDIA driver does not answer ({error})"


def _whole(nvml: ModuleType) -> list[Any]:
    """Handles of all GPUs of the machine, by PCI bus."""
    count = nvml.nvmlDeviceGetCount()
    if not count:
        raise NoGpuError("the NVIDIA driver finds no GPU")
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]


def _visible(nvml: ModuleType, whole: Sequence[Any], value: str | None) -> list[Any]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order.

    As CUDA does, the list ends before the first entry that names no GPU, as -1 does, and a GPU
    named twice hides all.
    """
    if value is None:
        return list(whole)
    uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in whole]
    chosen: list[Any] = []
    seen: set[str] = set()
    for entry in (part.strip() for part in value.split(",")):
        if entry.startswith("MIG-"):
            handle = _mig(nvml, entry)
        elif entry.isdecimal() and int(entry) < len(whole):
            handle = whole[int(entry)]
        else:
            matches = [i for i, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
            if len(matches) != 1:
                break
            handle = whole[matches[0]]
        uuid = nvml.nvmlDeviceGetUUID(handle)
        if uuid in seen:
            raise NoGpuError(f"{VISIBLE}={value} names a GPU twice, which hides all GPUs")
        seen.add(uuid)
        chosen.append(handle)
    if not chosen:
        noun = "GPU" if len(whole) == 1 else "GPUs"
        raise NoGpuError(f"{VISIBLE}={value!r} hides the {len(whole)} {noun} of this machine")
    return chosen


def _mig(nvml: ModuleType, uuid: str) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError as error:
        raise NoGpuError(
            f"{VISIBLE} names the MIG slice {uuid}, which the driver does not resolve ({error}); "
            "compare with nvidia-smi -L"
        ) from None


def _describe(nvml: ModuleType, index: int, handle: Any) -> Gpu:
    # A MIG slice tells its own memory, but the compute capability is that of its GPU.
    parent = handle
    if nvml.nvmlDeviceGetUUID(handle).startswith("MIG-"):
        parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    memory, free = 0, 0
    try:
        info = nvml.nvmlDeviceGetMemoryInfo(handle)
        memory, free = int(info.total), int(info.free)
    except nvml.NVMLError_NotSupported:  # memory shared with the CPU
        pass
    cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
    return Gpu(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        uuid=nvml.nvmlDeviceGetUUID(handle),
        compute_capability=tuple(nvml.nvmlDeviceGetCudaComputeCapability(parent)),
        memory=memory,
        free=free,
        driver=nvml.nvmlSystemGetDriverVersion(),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
    )
