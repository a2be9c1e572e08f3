"""CUDA devices, memory, streams and graphs, through NVIDIA's own bindings.

Every object is freed by :meth:`close`; none is used after it.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.engine import EngineUnavailableError
from engines.errors import UserError

Bytes = npt.NDArray[np.uint8]

_log = logging.getLogger(__name__)


class CudaError(UserError):
    """A call of CUDA that failed; the message names the call and CUDA's error."""


class OutOfDeviceMemoryError(CudaError):
    """The device has less free memory than was asked for."""


def import_cuda() -> ModuleType:
    """NVIDIA's bindings of the CUDA runtime.

    Raises:
        EngineUnavailableError: the package is missing or does not load.
    """
    try:
        return import_module("cuda.bindings.runtime")
    except ModuleNotFoundError:
        reason = "package cuda-bindings is not installed; install emfast with its extra gpu or rtx"
        raise EngineUnavailableError(reason) from None
    except ImportError as error:
        raise EngineUnavailableError(f"cuda-bindings does not load ({error})") from None


def call(name: str, *arguments: object) -> Any:
    """Call a function of the CUDA runtime.

    Returns:
        What it gives besides its error code: nothing, one value or a tuple.

    Raises:
        OutOfDeviceMemoryError, CudaError: it failed.
    """
    runtime = import_cuda()
    error, *values = getattr(runtime, name)(*arguments)
    if error != runtime.cudaError_t.cudaSuccess:
        runtime.cudaGetLastError()  # an error that was told must not show up at the next call
        reason = f"{name} failed: {error.name}"
        if error == runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise OutOfDeviceMemoryError(reason)
        raise CudaError(reason)
    return values[0] if len(values) == 1 else tuple(values) or None


def release(name: str, *arguments: object) -> None:
    """Call a function that frees something. After a device error nothing can be freed any more.

    What failed then is logged only: the error that came first is the one to tell.
    """
    try:
        call(name, *arguments)
    except CudaError as error:
        _log.debug("%s", error)


@dataclass(frozen=True)
class Device:
    """The GPU that this process computes on.

    Attributes:
        index: among the GPUs that the process sees.
        name: as the driver tells it.
        compute_capability: as "9.0".
        multiprocessors: number of streaming multiprocessors (SM).
        memory: in bytes.
    """

    index: int
    name: str
    compute_capability: str
    multiprocessors: int
    memory: int

    def __str__(self) -> str:
        return f"{self.name} (CUDA device {self.index})"


def use_device(index: int = 0) -> None:
    """Make a GPU the current one of this thread."""
    call("cudaSetDevice", index)


def open_device(index: int = 0) -> Device:
    """Make a GPU the current one of this thread, and tell what it is.

    Raises:
        EngineUnavailableError: no bindings, no driver or no such GPU.
    """
    try:
        use_device(index)
        properties = call("cudaGetDeviceProperties", index)
    except CudaError as error:
        raise EngineUnavailableError(str(error)) from None
    name = properties.name
    return Device(
        index=index,
        name=name.decode() if isinstance(name, bytes) else str(name),
        compute_capability=f"{properties.major}.{properties.minor}",
        multiprocessors=int(properties.multiProcessorCount),
        memory=int(properties.totalGlobalMem),
    )


def free_memory() -> int:
    """Bytes of the current device that nobody holds."""
    return int(call("cudaMemGetInfo")[0])


class DeviceBuffer:
    """Memory of the current device.

    Args:
        size: in bytes, from 1.

    Raises:
        OutOfDeviceMemoryError: less is free.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.address = int(call("cudaMalloc", size))

    def close(self) -> None:
        """Give the memory back."""
        release("cudaFree", self.address)


class PinnedBuffer:
    """Host memory that the device copies from and to without a detour.

    Args:
        size: in bytes, from 1.

    Attributes:
        array: uint8 (size,), a view of the memory.

    Raises:
        CudaError: there is no memory to pin.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        try:
            self.address = int(call("cudaMallocHost", size))
        except OutOfDeviceMemoryError:  # CUDA has one error for both memories
            raise CudaError(f"the host has no memory to pin for {size} bytes") from None
        self.array: Bytes = np.ctypeslib.as_array(
            (ctypes.c_uint8 * size).from_address(self.address)
        )

    def close(self) -> None:
        """Give the memory back; :attr:`array` must not be touched any more."""
        release("cudaFreeHost", self.address)


class Stream:
    """A queue of work that runs in its order, beside other streams and the default one."""

    def __init__(self) -> None:
        flags = import_cuda().cudaStreamNonBlocking
        self._stream = call("cudaStreamCreateWithFlags", flags)
        self.handle = int(self._stream)

    def copy_to_device(self, target: DeviceBuffer, source: PinnedBuffer, size: int) -> None:
        """Queue a copy of ``size`` bytes."""
        kind = import_cuda().cudaMemcpyKind.cudaMemcpyHostToDevice
        call("cudaMemcpyAsync", target.address, source.address, size, kind, self._stream)

    def copy_to_host(self, target: PinnedBuffer, source: DeviceBuffer, size: int) -> None:
        """Queue a copy of ``size`` bytes."""
        kind = import_cuda().cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", target.address, source.address, size, kind, self._stream)

    def wait(self) -> None:
        """Return when all queued work is done."""
        call("cudaStreamSynchronize", self._stream)

    def mark(self) -> Event:
        """An event that has passed when all work that is queued by now is done."""
        return Event(self._stream)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` queues on this stream, without running it.

        Args:
            work: queues the same calls with the same addresses as every later run needs.

        Raises:
            CudaError: something that cannot be captured.
        """
        mode = import_cuda().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            with suppress(CudaError):  # a capture that broke has no graph to destroy
                call("cudaGraphDestroy", call("cudaStreamEndCapture", self._stream))
            raise
        return Graph(call("cudaStreamEndCapture", self._stream), self)

    def launch(self, executable: object) -> None:
        """Queue an instantiated graph."""
        call("cudaGraphLaunch", executable, self._stream)

    def close(self) -> None:
        """Free the stream, once its work is done."""
        release("cudaStreamSynchronize", self._stream)
        release("cudaStreamDestroy", self._stream)


class Event:
    """A place in a stream that the host can wait for. Made by :meth:`Stream.mark`."""

    def __init__(self, stream: object) -> None:
        self._event = call("cudaEventCreateWithFlags", import_cuda().cudaEventDisableTiming)
        try:
            call("cudaEventRecord", self._event, stream)
        except CudaError:
            self.close()
            raise

    def wait(self) -> None:
        """Return when it has passed."""
        call("cudaEventSynchronize", self._event)

    def close(self) -> None:
        """Free it; the stream may still be on its way."""
        release("cudaEventDestroy", self._event)


class Graph:
    """Captured work that is queued again by one call. Made by :meth:`Stream.capture`."""

    def __init__(self, graph: object, stream: Stream) -> None:
        self._stream = stream
        try:
            self._executable = call("cudaGraphInstantiate", graph, 0)
        finally:
            release("cudaGraphDestroy", graph)

    def launch(self) -> None:
        """Queue the work on the stream that it was captured from."""
        self._stream.launch(self._executable)

    def close(self) -> None:
        """Free the graph; its work must be done."""
        release("cudaGraphExecDestroy", self._executable)
