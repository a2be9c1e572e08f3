"""Execution contexts of TensorRT, with the device memory and CUDA graphs that they run on."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engines.bundle import TensorSpec
from engines.cuda import (
    DeviceBuffer,
    Graph,
    OutOfDeviceMemoryError,
    PinnedBuffer,
    Stream,
    use_device,
)
from engines.engine import Array, EngineInfo
from engines.errors import UserError
from engines.files import atomic_write
from engines.tensorrt.library import failure

# Kinds of runs, told apart by their shapes, that each keep a context and a graph.
KINDS = 8

_log = logging.getLogger(__name__)
Shapes = tuple[tuple[int, ...], ...]


class Contexts:
    """Opens execution contexts, whose scratch memory their callers provide.

    TensorRT-RTX compiles its kernels on the GPU when an engine first runs; they are kept in a file.
    """

    def __init__(self, trt: ModuleType, engine: Any, flavour: str, kernels: Path | None) -> None:
        self._trt, self._engine, self._flavour = trt, engine, flavour
        self._path, self._read = kernels, b""
        self._config: Any = None
        self._kernels: Any = None
        if flavour == "tensorrt-rtx":
            self._configure()

    def _configure(self) -> None:
        trt = self._trt
        self._config = self._engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        # Compiled for each shape before its first run: a CUDA graph that was captured while a
        # fallback kernel still stood in would keep it for ever.
        self._config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        # The configuration points to the cache without keeping it: it must outlive all contexts.
        self._kernels = self._config.create_runtime_cache()
        if self._path is not None and self._path.is_file():
            self._read = self._path.read_bytes()
            if not self._kernels.deserialize(self._read):
                _log.info("%s: compiled for another driver or version; compiling", self._path)
        if not self._config.set_runtime_cache(self._kernels):
            raise failure(self._flavour, "refuses its cache of kernels")

    def open(self) -> Any:
        """A new context.

        Raises:
            OutOfDeviceMemoryError: there is no memory for it.
            UserError: TensorRT refuses, for the reasons that it logged.
        """
        use_device()  # the thread may be new to CUDA
        managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        how = managed if self._config is None else self._config
        context = self._engine.create_execution_context(how)
        if context is None:
            raise failure(self._flavour, "cannot open an execution context")
        # Engines are built with all that the inspector tells; naming it in a run costs time.
        context.nvtx_verbosity = self._trt.ProfilingVerbosity.NONE
        return context

    def scratch_size(self, context: Any) -> int:
        """Bytes that a context needs for the shapes that were set; some networks need none."""
        size = int(context.update_device_memory_size_for_shapes())
        if size == 0 and self._engine.device_memory_size_v2 > 0:  # how it tells a failure
            raise failure(self._flavour, "cannot tell the memory that these shapes need")
        return size

    def close(self) -> None:
        """Keep the kernels that were compiled, where the folder can be written."""
        if self._kernels is None or self._path is None:
            return
        compiled = self._kernels.serialize()
        if compiled is None or bytes(compiled) in (b"", self._read):
            return
        try:
            with atomic_write(self._path) as temporary:
                temporary.write_bytes(bytes(compiled))
        except UserError as error:
            _log.warning("compiled kernels are not kept: %s", error)


@dataclass
class Prepared:
    """A context for the shapes of one kind of run.

    TensorRT sets a context up for its shapes, and a graph that was captured from it holds only as
    long as they stay: each kind of run has its own context.

    Attributes:
        context: TensorRT's.
        tensors: shapes of all inputs and outputs.
        sizes: their bytes.
        scratch: bytes that the context needs besides.
        moves: of the memory when the context was last told where it is.
        runs: since then.
        graph: of a run, from the second one on.
    """

    context: Any
    tensors: dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    scratch: int
    moves: int = -1
    runs: int = 0
    graph: Graph | None = None

    def drop_graph(self) -> None:
        """Free the graph, if there is one."""
        if self.graph is not None:
            self.graph.close()
            self.graph = None


class Caller:
    """Contexts and the memory that they share, for one run at a time."""

    def __init__(
        self,
        contexts: Contexts,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        info: EngineInfo,
    ) -> None:
        use_device()
        self._contexts, self._info = contexts, info
        self._dtypes = {s.name: np.dtype(s.dtype) for s in (*inputs, *outputs)}
        self._inputs = [s.name for s in inputs]
        self._outputs = [s.name for s in outputs]
        self._stream = Stream()
        self._device: dict[str, DeviceBuffer] = {}
        self._pinned: dict[str, PinnedBuffer] = {}
        self._scratch: DeviceBuffer | None = None
        self._moves = 0
        self._prepared: dict[Shapes, Prepared] = {}
        self._capturing = True

    @property
    def memory(self) -> int:
        """Bytes of device memory that are held."""
        scratch = 0 if self._scratch is None else self._scratch.size
        return scratch + sum(buffer.size for buffer in self._device.values())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run inputs of shapes that the engine takes; returns new arrays."""
        shapes: Shapes = tuple(inputs[name].shape for name in self._inputs)
        prepared = self._prepare(shapes)
        self._give_memory(prepared)
        for name in self._inputs:
            self._host(name, prepared.tensors[name])[...] = inputs[name]
        if prepared.graph is None:
            self._enqueue(prepared)
        else:
            prepared.graph.launch()
        self._stream.wait()
        outputs = {name: self._host(name, prepared.tensors[name]).copy() for name in self._outputs}
        prepared.runs += 1
        if prepared.graph is None and prepared.runs > 1:
            # A run without a graph must come right before: TensorRT sets itself up in it.
            self._capture(prepared)
        return outputs

    def _prepare(self, shapes: Shapes) -> Prepared:
        """The context for some shapes, opened now if they are new."""
        if shapes in self._prepared:
            return self._prepared[shapes]
        if len(self._prepared) >= KINDS:
            self._prepared.pop(next(iter(self._prepared))).drop_graph()
        context = self._contexts.open()
        tensors = dict(zip(self._inputs, shapes, strict=True))
        for name, shape in tensors.items():
            if not context.set_input_shape(name, shape):
                raise failure(self._info.engine, f"refuses the shape {shape} of {name}")
        for name in self._outputs:
            tensors[name] = tuple(context.get_tensor_shape(name))
        sizes = {n: math.prod(shape) * self._dtypes[n].itemsize for n, shape in tensors.items()}
        prepared = Prepared(context, tensors, sizes, self._contexts.scratch_size(context))
        self._prepared[shapes] = prepared
        return prepared

    def _give_memory(self, prepared: Prepared) -> None:
        """See that there is memory for a run, and tell its context where."""
        for name, size in prepared.sizes.items():
            if name not in self._device or self._device[name].size < size:
                self._grow_tensor(name, size)
        if self._scratch is None or self._scratch.size < prepared.scratch:
            self._grow_scratch(max(prepared.scratch, 1))
        if prepared.moves == self._moves or self._scratch is None:
            return
        # A graph holds addresses: it is worth nothing once memory has moved.
        prepared.drop_graph()
        for name in prepared.tensors:
            prepared.context.set_tensor_address(name, self._device[name].address)
        prepared.context.set_device_memory(self._scratch.address, self._scratch.size)
        prepared.moves, prepared.runs = self._moves, 0

    def _grow_tensor(self, name: str, size: int) -> None:
        self._moves += 1
        if name in self._device:
            self._device.pop(name).close()
            self._pinned.pop(name).close()
        pinned = PinnedBuffer(size)
        try:
            self._device[name] = DeviceBuffer(size)
        except OutOfDeviceMemoryError:
            pinned.close()
            raise
        self._pinned[name] = pinned

    def _grow_scratch(self, size: int) -> None:
        self._moves += 1
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None
        self._scratch = DeviceBuffer(size)

    def _capture(self, prepared: Prepared) -> None:
        """Record a graph of what has just run, for the runs to come."""
        if not self._capturing:
            return
        # Only TensorRT-RTX has this question; TensorRT answers by failing.
        capturable = getattr(prepared.context, "is_stream_capturable", None)
        try:
            if capturable is not None and not capturable(self._stream.handle):
                raise failure(self._info.engine, "does not let its run be captured")
            prepared.graph = self._stream.capture(partial(self._enqueue, prepared))
        except UserError as error:
            self._capturing = False
            _log.warning("%s: runs without CUDA graphs (%s)", self._info, error)

    def _enqueue(self, prepared: Prepared) -> None:
        """Queue copy in, run and copy out."""
        for name in self._inputs:
            size = prepared.sizes[name]
            self._stream.copy_to_device(self._device[name], self._pinned[name], size)
        if not prepared.context.execute_async_v3(self._stream.handle):
            raise failure(self._info.engine, "cannot run the engine")
        for name in self._outputs:
            size = prepared.sizes[name]
            self._stream.copy_to_host(self._pinned[name], self._device[name], size)

    def _host(self, name: str, shape: tuple[int, ...]) -> Array:
        """The pinned memory of a tensor as an array."""
        dtype = self._dtypes[name]
        size = math.prod(shape) * dtype.itemsize
        return self._pinned[name].array[:size].view(dtype).reshape(shape)

    def close(self) -> None:
        """Free the contexts and their memory."""
        use_device()
        self._stream.close()
        for prepared in self._prepared.values():
            prepared.drop_graph()
        self._prepared.clear()
        if self._scratch is not None:
            self._scratch.close()
        for name, buffer in self._device.items():
            buffer.close()
            self._pinned[name].close()
