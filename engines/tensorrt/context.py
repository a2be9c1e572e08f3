"""Execution contexts of TensorRT, with the device memory and CUDA graphs that they run on."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engines.bundle import TensorSpec
from engines.cuda import DeviceBuffer, Graph, OutOfDeviceMemoryError, PinnedBuffer, Stream
from engines.engine import Array, EngineInfo
from engines.errors import UserError
from engines.files import atomic_write
from engines.tensorrt.library import failure

GRAPHS = 8

_log = logging.getLogger(__name__)
Shapes = tuple[tuple[int, ...], ...]


class Contexts:
    """Opens execution contexts, whose scratch memory their callers provide.

    TensorRT-RTX compiles its kernels on the GPU when an engine first runs; they are kept in a file.
    """

    def __init__(self, trt: ModuleType, engine: Any, flavour: str, kernels: Path | None) -> None:
        self._trt, self._engine, self._flavour = trt, engine, flavour
        self._kernels, self._compiled = kernels, b""
        self._config: Any = None
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
        compiled = self._config.create_runtime_cache()
        if self._kernels is not None and self._kernels.is_file():
            self._compiled = self._kernels.read_bytes()
            if not compiled.deserialize(self._compiled):
                _log.info("%s: compiled for another driver or version; compiling", self._kernels)
        self._config.set_runtime_cache(compiled)

    def open(self) -> Any:
        """A new context; :class:`OutOfDeviceMemoryError` where there is no memory for it."""
        managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        how = managed if self._config is None else self._config
        context = self._engine.create_execution_context(how)
        if context is None:
            raise failure(self._flavour, "cannot open an execution context")
        # Engines are built with all that the inspector tells; naming it in a run costs time.
        context.nvtx_verbosity = self._trt.ProfilingVerbosity.NONE
        return context

    def close(self) -> None:
        """Keep the kernels that were compiled, where the folder can be written."""
        if self._config is None or self._kernels is None:
            return
        compiled = bytes(self._config.get_runtime_cache().serialize())
        if compiled == self._compiled:
            return
        try:
            with atomic_write(self._kernels) as temporary:
                temporary.write_bytes(compiled)
        except UserError as error:
            _log.warning("compiled kernels are not kept: %s", error)


class Caller:
    """An execution context and the memory that it runs on, for one caller at a time."""

    def __init__(
        self,
        context: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        info: EngineInfo,
    ) -> None:
        self._context, self._info = context, info
        self._dtypes = {s.name: np.dtype(s.dtype) for s in (*inputs, *outputs)}
        self._inputs = [s.name for s in inputs]
        self._outputs = [s.name for s in outputs]
        self._stream = Stream()
        self._device: dict[str, DeviceBuffer] = {}
        self._pinned: dict[str, PinnedBuffer] = {}
        self._scratch: DeviceBuffer | None = None
        self._bound: Shapes | None = None
        # By the shapes of the inputs: those of all tensors, and from the second run on a graph.
        self._shapes: dict[Shapes, dict[str, tuple[int, ...]]] = {}
        self._ran: set[Shapes] = set()
        self._graphs: dict[Shapes, Graph] = {}
        self._capturing = True

    @property
    def memory(self) -> int:
        """Bytes of device memory that are held."""
        scratch = 0 if self._scratch is None else self._scratch.size
        return scratch + sum(buffer.size for buffer in self._device.values())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run inputs of shapes that the engine takes; returns new arrays."""
        shapes: Shapes = tuple(inputs[name].shape for name in self._inputs)
        graph = self._graphs.get(shapes)
        if graph is None:
            self._bind(shapes)
        tensors = self._shapes[shapes]
        for name in self._inputs:
            self._host(name, tensors[name])[...] = inputs[name]
        if graph is None:
            self._enqueue(tensors)
        else:
            graph.launch()
        self._stream.wait()
        outputs = {name: self._host(name, tensors[name]).copy() for name in self._outputs}
        if graph is None and shapes in self._ran:
            # A run without a graph must come right before: TensorRT sets itself up in it.
            self._capture(shapes)
        self._ran.add(shapes)
        return outputs

    def _bind(self, shapes: Shapes) -> None:
        """Set the shapes of the next run and its memory."""
        if self._bound == shapes:
            return
        self._bound = None
        tensors = dict(zip(self._inputs, shapes, strict=True))
        for name, shape in tensors.items():
            if not self._context.set_input_shape(name, shape):
                raise failure(self._info.engine, f"refuses the shape {shape} of {name}")
        for name in self._outputs:
            tensors[name] = tuple(self._context.get_tensor_shape(name))
        for name, shape in tensors.items():
            buffer = self._tensor_buffer(name, math.prod(shape) * self._dtypes[name].itemsize)
            self._context.set_tensor_address(name, buffer.address)
        scratch = self._scratch_buffer(int(self._context.update_device_memory_size_for_shapes()))
        self._context.set_device_memory(scratch.address, scratch.size)
        self._bound, self._shapes[shapes] = shapes, tensors

    def _tensor_buffer(self, name: str, size: int) -> DeviceBuffer:
        if name not in self._device or self._device[name].size < size:
            self._drop_graphs()
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
        return self._device[name]

    def _scratch_buffer(self, size: int) -> DeviceBuffer:
        if self._scratch is not None and self._scratch.size < size:
            self._drop_graphs()
            self._scratch.close()
            self._scratch = None
        if self._scratch is None:
            self._scratch = DeviceBuffer(max(size, 1))  # some networks need none
        return self._scratch

    def _drop_graphs(self) -> None:
        """Graphs hold addresses: they are worth nothing once memory moves."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()

    def _capture(self, shapes: Shapes) -> None:
        """Record a graph of shapes that have just run, for the runs to come."""
        # Only TensorRT-RTX has this question; TensorRT answers by failing.
        capturable = getattr(self._context, "is_stream_capturable", None)
        if not self._capturing or (capturable and not capturable(self._stream.handle)):
            return
        if len(self._graphs) >= GRAPHS:
            self._graphs.pop(next(iter(self._graphs))).close()
        try:
            self._graphs[shapes] = self._stream.capture(
                partial(self._enqueue, self._shapes[shapes])
            )
        except UserError as error:
            self._capturing = False
            _log.warning("%s: runs without CUDA graphs (%s)", self._info, error)

    def _enqueue(self, tensors: Mapping[str, tuple[int, ...]]) -> None:
        """Queue copy in, run and copy out."""
        for name in self._inputs:
            size = self._host(name, tensors[name]).nbytes
            self._stream.copy_to_device(self._device[name], self._pinned[name], size)
        if not self._context.execute_async_v3(self._stream.handle):
            raise failure(self._info.engine, "cannot run the engine")
        for name in self._outputs:
            size = self._host(name, tensors[name]).nbytes
            self._stream.copy_to_host(self._pinned[name], self._device[name], size)

    def _host(self, name: str, shape: tuple[int, ...]) -> Array:
        """The pinned memory of a tensor as an array."""
        dtype = self._dtypes[name]
        size = math.prod(shape) * dtype.itemsize
        return self._pinned[name].array[:size].view(dtype).reshape(shape)

    def close(self) -> None:
        """Free the context and its memory."""
        self._stream.close()
        self._drop_graphs()
        del self._context
        if self._scratch is not None:
            self._scratch.close()
        for name, buffer in self._device.items():
            buffer.close()
            self._pinned[name].close()
