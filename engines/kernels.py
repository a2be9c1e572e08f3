"""Kernels of our own: compiled for the GPU at hand when they are first needed, and launched."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

from engines.cuda import CudaError, Device, Stream
from engines.engine import EngineUnavailableError

INSTALL = "{} is not installed; install emfast with its extra gpu or rtx"
THREADS = 256


def _import(name: str, title: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise EngineUnavailableError(INSTALL.format(title)) from None
    except ImportError as error:
        raise EngineUnavailableError(f"{title} does not load ({error})") from None


def import_driver() -> ModuleType:
    """NVIDIA's bindings of the CUDA driver; :class:`EngineUnavailableError` without them."""
    return _import("cuda.bindings.driver", "package cuda-bindings")


def _import_nvrtc() -> ModuleType:
    """The compiler; its library is looked for at the first call.

    Raises:
        EngineUnavailableError: the bindings or the library are missing.
    """
    nvrtc = _import("cuda.bindings.nvrtc", "package cuda-bindings")
    try:
        nvrtc.nvrtcVersion()
    except Exception as error:  # the finder's own class, or RuntimeError, by version
        reason = " ".join(str(error).split())[:200]
        raise EngineUnavailableError(
            f"{INSTALL.format('package nvidia-cuda-nvrtc')} ({reason})"
        ) from None
    return nvrtc


@lru_cache
def compile_kernel(source: str, compute_capability: str) -> bytes:
    """Compile CUDA C++ for one kind of GPU. No GPU is needed for it.

    Multiplications and additions are not fused: each rounds as it does in numpy.

    Args:
        source: that includes nothing.
        compute_capability: as "9.0".

    Returns:
        A cubin.

    Raises:
        EngineUnavailableError: no compiler, or one that does not know the GPU or the source.
    """
    nvrtc = _import_nvrtc()

    def check(result: Any) -> Any:
        error, *values = result
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise EngineUnavailableError(f"NVRTC fails: {error.name}")
        return values[0] if values else None

    options = [f"--gpu-architecture=sm_{compute_capability.replace('.', '')}", "--fmad=false"]
    program = check(nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], []))
    try:
        error = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])[0]
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(check(nvrtc.nvrtcGetProgramLogSize(program)))
            check(nvrtc.nvrtcGetProgramLog(program, log))
            reason = " ".join(log.decode(errors="replace").strip("\0").split())[:300]
            raise EngineUnavailableError(
                f"NVRTC cannot compile for compute capability {compute_capability}: "
                f"{error.name} {reason}".rstrip()
            )
        # NVRTC fills it: the driver's bindings take bytes only.
        cubin = bytes(check(nvrtc.nvrtcGetCUBINSize(program)))
        check(nvrtc.nvrtcGetCUBIN(program, cubin))
        return cubin
    finally:
        nvrtc.nvrtcDestroyProgram(program)


class Kernel:
    """A kernel on the current device.

    Args:
        device: that it is compiled for.
        source: CUDA C++.
        name: of an ``extern "C"`` function in it.

    Raises:
        EngineUnavailableError: no compiler, or one that does not know the device.
        CudaError: the driver refuses it.
    """

    def __init__(self, device: Device, source: str, name: str) -> None:
        self._driver = import_driver()
        cubin = compile_kernel(source, device.compute_capability)
        self._module = self._call("cuModuleLoadData", cubin)
        self._function = self._call("cuModuleGetFunction", self._module, name.encode())

    def launch(
        self, stream: Stream, grid: tuple[int, int], arguments: Sequence[ctypes._SimpleCData[Any]]
    ) -> None:
        """Queue the kernel in blocks of :data:`THREADS` threads.

        Args:
            stream: that it runs on.
            grid: number of blocks in x and y.
            arguments: of the function; they are copied.
        """
        addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        self._call(
            "cuLaunchKernel",
            self._function,
            *(*grid, 1),
            *(THREADS, 1, 1),
            0,
            stream.handle,
            ctypes.addressof(addresses),
            0,
        )

    def close(self) -> None:
        """Unload it; what it was queued for must be done."""
        self._driver.cuModuleUnload(self._module)

    def _call(self, name: str, *arguments: object) -> Any:
        error, *values = getattr(self._driver, name)(*arguments)
        if error != self._driver.CUresult.CUDA_SUCCESS:
            raise CudaError(f"{name} failed: {error.name}")
        return values[0] if values else None
