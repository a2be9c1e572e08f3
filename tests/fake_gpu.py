"""A stand-in for a GPU: CUDA's runtime and TensorRT-RTX's, with the rules that they enforce.

Engines are built by the real TensorRT-RTX. What needs a device is doubled: memory is a Python
dictionary with a limit, a stream runs its queue when it is waited for, a graph holds the calls that
were captured, and an execution context evaluates the ONNX graph with onnxruntime. Reading memory
that was freed, copying too much, capturing before a warm-up run and leaking are errors here as they
are there. That a real GPU does the same is for the tests marked ``gpu``.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tensorrt_rtx

import engines.cuda
import engines.gpu
import engines.kernels
import engines.tensorrt.library
import export.tensorrt
from engines.bundle import TensorSpec
from engines.plan import BuildOptions, Profile
from tests import host_kernel

NAME = "NVIDIA Stand-in"
COMPUTE_CAPABILITY = (8, 6)
TARGET = "sm86"
DRIVER = "580.65.06"
MEMORY = 1 << 30


class CudaErrorCode(IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815


OK = CudaErrorCode.cudaSuccess
INVALID = CudaErrorCode.cudaErrorInvalidValue


class FakeCuda:
    """``cuda.bindings.runtime``: every function returns its error and its values as a tuple."""

    cudaError_t = CudaErrorCode  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaEventDisableTiming = 2  # noqa: N815

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.device: dict[int, np.ndarray] = {}
        self.host: dict[int, np.ndarray] = {}
        self.queues: dict[int, list[Callable[[], None]]] = {}
        self.captures: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.executables: dict[int, list[Callable[[], None]]] = {}
        self.launches = 0
        self.copies = 0
        self.captured = 0
        self.events: set[int] = set()
        self._handles = itertools.count(1)

    @property
    def used(self) -> int:
        return sum(array.nbytes for array in self.device.values())

    def push(self, stream: int, work: Callable[[], None]) -> None:
        self.captures.get(stream, self.queues[stream]).append(work)

    def array(self, address: int) -> np.ndarray:
        """Device memory by its address; an address that was freed is an illegal access."""
        if address not in self.device:
            raise RuntimeError("an illegal memory access was encountered")
        return self.device[address]

    def cudaSetDevice(self, index: int) -> Any:  # noqa: N802
        return (OK if index == 0 else INVALID,)

    def cudaGetDeviceProperties(self, index: int) -> Any:  # noqa: N802
        major, minor = COMPUTE_CAPABILITY
        return OK, SimpleNamespace(
            name=NAME.encode(),
            major=major,
            minor=minor,
            multiProcessorCount=84,
            totalGlobalMem=self.memory,
        )

    def cudaMemGetInfo(self) -> Any:  # noqa: N802
        return OK, self.memory - self.used, self.memory

    def cudaGetLastError(self) -> Any:  # noqa: N802
        return (OK,)

    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        if self.captures:
            return INVALID, None
        if self.used + size > self.memory:
            return CudaErrorCode.cudaErrorMemoryAllocation, None
        array = np.full(size, 0xCD, np.uint8)
        self.device[array.ctypes.data] = array
        return OK, array.ctypes.data

    def cudaFree(self, address: int) -> Any:  # noqa: N802
        return (OK if self.device.pop(address, None) is not None else INVALID,)

    def cudaMallocHost(self, size: int) -> Any:  # noqa: N802
        array = np.full(size, 0xCD, np.uint8)
        self.host[array.ctypes.data] = array
        return OK, array.ctypes.data

    def cudaFreeHost(self, address: int) -> Any:  # noqa: N802
        return (OK if self.host.pop(address, None) is not None else INVALID,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        handle = next(self._handles)
        self.queues[handle] = []
        return OK, handle

    def cudaStreamDestroy(self, stream: int) -> Any:  # noqa: N802
        return (OK if self.queues.pop(stream, None) == [] else INVALID,)

    def cudaStreamSynchronize(self, stream: int) -> Any:  # noqa: N802
        for work in self.queues[stream]:
            work()
        self.queues[stream].clear()
        return (OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        handle = next(self._handles)
        self.events.add(handle)
        return OK, handle

    def cudaEventRecord(self, event: int, stream: int) -> Any:  # noqa: N802
        return (OK if event in self.events and stream in self.queues else INVALID,)

    def cudaEventSynchronize(self, event: int) -> Any:  # noqa: N802
        return (OK if event in self.events else INVALID,)

    def cudaEventDestroy(self, event: int) -> Any:  # noqa: N802
        known = event in self.events
        self.events.discard(event)
        return (OK if known else INVALID,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> Any:  # noqa: N802
        self.copies += 1
        upload = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        target, origin = (self.device, self.host) if upload else (self.host, self.device)
        if to not in target or source not in origin:
            return (INVALID,)
        if size > target[to].nbytes or size > origin[source].nbytes:
            return (INVALID,)

        def copy() -> None:
            if to not in target or source not in origin:
                raise RuntimeError("an illegal memory access was encountered")
            target[to][:size] = origin[source][:size]

        self.push(stream, copy)
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Any:  # noqa: N802
        self.captures[stream] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> Any:  # noqa: N802
        handle = next(self._handles)
        self.graphs[handle] = self.captures.pop(stream)
        self.captured += 1
        return OK, handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:  # noqa: N802
        handle = next(self._handles)
        self.executables[handle] = list(self.graphs[graph])
        return OK, handle

    def cudaGraphDestroy(self, graph: int) -> Any:  # noqa: N802
        return (OK if self.graphs.pop(graph, None) is not None else INVALID,)

    def cudaGraphExecDestroy(self, executable: int) -> Any:  # noqa: N802
        return (OK if self.executables.pop(executable, None) is not None else INVALID,)

    def cudaGraphLaunch(self, executable: int, stream: int) -> Any:  # noqa: N802
        self.launches += 1
        self.queues[stream].extend(self.executables[executable])
        return (OK,)


class FakeDriver:
    """``cuda.bindings.driver``: a kernel is loaded from a real cubin, and runs on the host.

    Attributes:
        launches: of kernels, on the stream; those that a graph replays count too.
    """

    CUresult = SimpleNamespace(CUDA_SUCCESS=OK)

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.launches = 0
        self.modules: set[int] = set()

    def cuModuleLoadData(self, image: bytes) -> Any:  # noqa: N802
        handle = next(self._cuda._handles)
        self.modules.add(handle)
        return (OK, handle) if image[:4] == b"\x7fELF" else (INVALID, None)

    def cuModuleGetFunction(self, module: int, name: bytes) -> Any:  # noqa: N802
        known = module in self.modules and name == b"sampling_step"
        return (OK, module) if known else (INVALID, None)

    def cuModuleUnload(self, module: int) -> Any:  # noqa: N802
        self.modules.remove(module)
        return (OK,)

    def cuLaunchKernel(self, function: int, *arguments: Any) -> Any:  # noqa: N802
        *sizes, shared, stream, addresses, extra = arguments
        if function not in self.modules or sizes[2:] != [1, 256, 1, 1] or shared or extra:
            return (INVALID,)
        pointers = (ctypes.c_void_p * 12).from_address(addresses)
        # Copied by the launch, as CUDA does: nine addresses and three numbers.
        values = [ctypes.c_void_p.from_address(p or 0).value or 0 for p in pointers[:9]]
        numbers = [ctypes.c_uint32.from_address(p or 0).value for p in pointers[9:]]

        def run() -> None:
            for value in values:
                if not any(a <= value < a + m.nbytes for a, m in self._cuda.device.items()):
                    raise RuntimeError("an illegal memory access was encountered")
            self.launches += 1
            host_kernel.sampling_step(sizes[0], sizes[1], values, numbers)

        self._cuda.push(stream, run)
        return (OK,)


@dataclass(frozen=True)
class Source:
    """What a serialised engine was built from."""

    graph: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: Profile


class FakeRuntime:
    """``tensorrt_rtx.Runtime``: takes the engines that were built in this test."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        source = self._gpu.built.get(hashlib.sha256(plan).hexdigest())
        if source is None:
            errors = engines.tensorrt.library.logger("tensorrt-rtx").errors
            errors.append("Serialization assertion failed: magic tag does not match")
            return None
        return FakeEngine(self._gpu, source)


class FakeEngine:
    def __init__(self, gpu: FakeGpu, source: Source) -> None:
        self.gpu, self.source = gpu, source
        self._tensors = {s.name: s for s in (*source.inputs, *source.outputs)}
        self.num_io_tensors = len(self._tensors)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(source.graph), options)
        self.noise = gpu.noise
        self.device_memory_size_v2 = 1

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        inputs = {spec.name for spec in self.source.inputs}
        modes = tensorrt_rtx.TensorIOMode
        return modes.INPUT if name in inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        types = {"float32": tensorrt_rtx.float32, "float16": tensorrt_rtx.float16}
        return types[self._tensors[name].dtype]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return list(self.source.profile.shapes(self._tensors[name]))

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig()

    def create_execution_context(self, config: FakeConfig) -> FakeContext:
        managed = tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED
        assert config.strategy == managed
        if config.kernels() is None:
            raise RuntimeError("the cache of kernels was freed before the context was opened")
        return FakeContext(self)


class FakeKernels:
    """``IRuntimeCache``"""

    def __init__(self) -> None:
        self.blob = b""

    def deserialize(self, blob: bytes) -> bool:
        self.blob = blob if blob == b"kernels" else b""
        return bool(self.blob)

    def serialize(self) -> bytes:
        return b"kernels"


class FakeConfig:
    """``IRuntimeConfig``"""

    def __init__(self) -> None:
        self.strategy: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        # TensorRT points to the cache and does not keep it.
        self.kernels: Callable[[], FakeKernels | None] = lambda: None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeKernels:
        return FakeKernels()

    def set_runtime_cache(self, kernels: FakeKernels) -> bool:
        self.kernels = weakref.ref(kernels)
        return True


class FakeContext:
    """``IExecutionContext`` whose scratch memory is 3 bytes for each byte of the first input."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine, self._gpu = engine, engine.gpu
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] = (0, 0)
        self._warm: dict[str, tuple[int, ...]] | None = None
        self._changes = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        if not all(a <= n <= b for n, a, b in zip(shape, low, high, strict=True)):
            return False
        if self._shapes.get(name) != shape:
            self._warm, self._scratch = None, (0, 0)
            self._changes += 1
        self._shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        free: dict[int | str, int] = {}
        for spec in self._engine.source.inputs:
            free |= dict(zip(spec.shape, self._shapes[spec.name], strict=True))
        spec = next(s for s in self._engine.source.outputs if s.name == name)
        return tuple(free[axis] if isinstance(axis, str) else axis for axis in spec.shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return 12 * int(np.prod(self._shapes[self._engine.source.inputs[0].name]))

    def set_device_memory(self, address: int, size: int) -> None:
        self._scratch = (address, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return self._gpu.capturable

    def execute_async_v3(self, stream: int) -> bool:
        address, size = self._scratch
        if size < self.update_device_memory_size_for_shapes() or self._gpu.failing:
            errors = engines.tensorrt.library.logger("tensorrt-rtx").errors
            errors.append("Error Code 3: API Usage Error (no device memory was set)")
            return False
        cuda = self._gpu.cuda
        if stream in cuda.captures and self._warm != self._shapes:
            return False  # TensorRT has to set itself up in a run that is not captured
        self._warm = dict(self._shapes)
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        source, session = self._engine.source, self._engine.session

        changes = self._changes

        def run() -> None:
            if self._changes != changes:
                raise RuntimeError("a graph was replayed after its context took other shapes")
            cuda.array(address)
            feeds = {}
            for spec in source.inputs:
                dtype = np.dtype(spec.dtype)
                count = int(np.prod(shapes[spec.name])) * dtype.itemsize
                raw = cuda.array(addresses[spec.name])[:count]
                feeds[spec.name] = raw.view(dtype).reshape(shapes[spec.name]).copy()
            names = [spec.name for spec in source.outputs]
            for name, value in zip(names, session.run(names, feeds), strict=True):
                value = np.ascontiguousarray(value + np.asarray(self._engine.noise, value.dtype))
                cuda.array(addresses[name])[: value.nbytes] = value.reshape(-1).view(np.uint8)

        cuda.push(stream, run)
        return True


class FakeGpu:
    """The knobs and counters of the stand-in.

    Attributes:
        cuda, driver: the doubled CUDA runtime and driver.
        built: the engines that were built, by SHA-256.
        builds: how many were built.
        noise: added to every output of engines that are opened from now on.
        capturable, failing: what contexts answer.
    """

    def __init__(self, memory: int) -> None:
        self.cuda = FakeCuda(memory)
        self.driver = FakeDriver(self.cuda)
        self.built: dict[str, Source] = {}
        self.builds = 0
        self.noise = 0.0
        self.capturable, self.failing = True, False

    def gpus(self) -> list[engines.gpu.Gpu]:
        free = self.cuda.memory - self.cuda.used
        return [
            engines.gpu.Gpu(
                0, NAME, "GPU-0", COMPUTE_CAPABILITY, self.cuda.memory, free, DRIVER, "13.0"
            )
        ]


def install(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Make this a machine with the stand-in GPU and TensorRT-RTX, without TensorRT."""
    gpu = FakeGpu(MEMORY)
    build = export.tensorrt.build

    def remembered_build(
        graph: Path,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        profile: Profile,
        options: BuildOptions,
        *rest: Any,
    ) -> Any:
        # The builder asks the driver for the GPU of this machine: name it instead.
        ahead = replace(options, targets=options.targets or (TARGET,))
        built = build(graph, inputs, outputs, profile, ahead, *rest)
        source = Source(graph, tuple(inputs), tuple(outputs), profile)
        gpu.built[hashlib.sha256(built.plan).hexdigest()] = source
        gpu.builds += 1
        return built

    class Module:
        """The real module but for its runtime."""

        def __getattr__(self, name: str) -> Any:
            if name == "Runtime":
                return lambda logger: FakeRuntime(gpu)
            return getattr(tensorrt_rtx, name)

    real_import = engines.tensorrt.library.import_module

    def import_module(name: str) -> Any:
        return Module() if name == "tensorrt_rtx" else real_import(name)

    monkeypatch.setattr(engines.cuda, "import_cuda", lambda: gpu.cuda)
    monkeypatch.setattr(engines.kernels, "import_driver", lambda: gpu.driver)
    monkeypatch.setattr(engines.tensorrt.library, "import_module", import_module)
    for module in ("engines.selection", "emfast.engine_files", "export.tensorrt"):
        monkeypatch.setattr(f"{module}.gpus", gpu.gpus)
    monkeypatch.setattr("engines.gpu.gpus", gpu.gpus)
    monkeypatch.setattr("emfast.engine_files.build", remembered_build)
    return gpu
