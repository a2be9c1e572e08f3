"""An engine whose inputs and outputs stay at their places on the device, for latency.

Each shape that is asked for gets buffers of its own, pinned on the host, and a CUDA graph: a run is
one copy into pinned memory, one launch and one copy out of it. What onnxruntime's CUDA provider
does in its own ``run`` takes an allocation and a launch for every operation.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Protocol, Self

import numpy as np

from engines.bundle import TensorSpec
from engines.cuda import CudaError, DeviceBuffer, Graph, PinnedBuffer, Stream, open_device
from engines.device import Binding, DeviceEngine, DeviceTensor
from engines.engine import Array, Engine
from engines.errors import UserError

Shape = tuple[int, ...]
# Shapes that are kept: whole slices, the smaller last batch of them, and a tile or two.
SHAPES = 4

_log = logging.getLogger(__name__)


class BoundEngine:
    """Runs an engine of the device on bound memory. A context manager, as every engine.

    Results are those of the engine that it wraps, which stays the caller's to close. Callers of
    several threads take turns.

    Args:
        engine: that evaluates the network.
        inputs, outputs: of the bundle's manifest; every free axis of an output is one of an input.
    """

    def __init__(
        self, engine: DeviceEngine, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        open_device()
        self.info = engine.info
        self._engine, self._inputs, self._outputs = engine, inputs, outputs
        self._bound: OrderedDict[tuple[Shape, ...], _Bound] = OrderedDict()
        self._turn = threading.Lock()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        arrays = [inputs[spec.name] for spec in self._inputs]
        for spec, array in zip(self._inputs, arrays, strict=True):
            if array.dtype != spec.dtype or array.ndim != len(spec.shape):
                raise UserError(
                    f"{self.info}: {spec.name} is {array.dtype} of shape {array.shape}; expected "
                    f"{spec.dtype} of {spec.shape}"
                )
        shapes = tuple(array.shape for array in arrays)
        with self._turn:
            if shapes not in self._bound:
                if len(self._bound) == SHAPES:
                    self._bound.popitem(last=False)[1].close()
                self._bound[shapes] = self._bind(shapes)
            self._bound.move_to_end(shapes)
            try:
                return self._bound[shapes].run(arrays)
            except UserError:
                self._bound.pop(shapes).close()
                raise

    def _bind(self, shapes: Sequence[Shape]) -> _Bound:
        sizes = {
            axis: size
            for spec, shape in zip(self._inputs, shapes, strict=True)
            for axis, size in zip(spec.shape, shape, strict=True)
            if isinstance(axis, str)
        }
        results = [
            tuple(axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape)
            for spec in self._outputs
        ]
        sent = list(zip(self._inputs, shapes, strict=True))
        return _Bound(self._engine, sent, list(zip(self._outputs, results, strict=True)))

    def close(self) -> None:
        while self._bound:
            self._bound.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class HostAndDeviceEngine(Engine, DeviceEngine, Protocol):
    """An engine that runs arrays of the host as well as memory of the device."""


class BoundWherePossible:
    """An engine, on bound memory for the shapes that come again and as it is for all others.

    To bind a shape takes a session and a graph, which one run does not pay for: a shape is bound
    when it comes the second time, and :data:`SHAPES` of them at most, so that slices of many sizes
    do not drive each other out. Where a binding or its first run is refused, the shape runs as it
    is; the first refusal is told.

    Args:
        engine: that evaluates the network; closed with this one.
        inputs, outputs: of the bundle's manifest.

    Raises:
        UserError: there is no device to hold memory on; ``engine`` stays open.
    """

    def __init__(
        self,
        engine: HostAndDeviceEngine,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> None:
        self.info = engine.info
        self._engine = engine
        self._bound = BoundEngine(engine, inputs, outputs)
        # Shapes that have come, and of them those that are bound and those that were refused.
        self._seen: set[tuple[Shape, ...]] = set()
        self._binds: set[tuple[Shape, ...]] = set()
        self._refused: set[tuple[Shape, ...]] = set()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        shapes = tuple(inputs[name].shape for name in sorted(inputs))
        if not self._to_bind(shapes):
            outputs = self._engine.run(inputs)
            self._seen.add(shapes)  # it does not take shapes that failed
            return outputs
        try:
            return self._bound.run(inputs)
        except UserError as refusal:
            self._binds.discard(shapes)
            outputs = self._engine.run(inputs)
            if not self._refused:
                _log.warning("%s: runs without bound memory (%s)", self.info, refusal)
            self._refused.add(shapes)
            return outputs

    def _to_bind(self, shapes: tuple[Shape, ...]) -> bool:
        if shapes in self._binds:
            return True
        if shapes not in self._seen or shapes in self._refused or len(self._binds) == SHAPES:
            return False
        self._binds.add(shapes)
        return True

    def bind(self, tensors: Mapping[str, DeviceTensor], stream: Stream) -> Binding:
        """As :meth:`engines.device.DeviceEngine.bind`."""
        return self._engine.bind(tensors, stream)

    def close(self) -> None:
        self._bound.close()
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Tensor:
    """A tensor on the device and its place in pinned memory."""

    def __init__(self, spec: TensorSpec, shape: Shape, stack: ExitStack) -> None:
        self.name = spec.name
        dtype = np.dtype(spec.dtype)
        self.size = math.prod(shape) * dtype.itemsize
        self.pinned = stack.enter_context(closing(PinnedBuffer(self.size)))
        self.device = stack.enter_context(closing(DeviceBuffer(self.size)))
        self.bound = DeviceTensor(self.device.address, spec.dtype, shape)
        self.array = self.pinned.array.view(dtype).reshape(shape)


class _Bound:
    """One shape: buffers, binding and graph."""

    def __init__(
        self,
        engine: DeviceEngine,
        inputs: Sequence[tuple[TensorSpec, Shape]],
        outputs: Sequence[tuple[TensorSpec, Shape]],
    ) -> None:
        with ExitStack() as stack:
            self._stream = stack.enter_context(closing(Stream()))
            self._inputs = [_Tensor(spec, shape, stack) for spec, shape in inputs]
            self._outputs = [_Tensor(spec, shape, stack) for spec, shape in outputs]
            tensors = {one.name: one.bound for one in (*self._inputs, *self._outputs)}
            self._network = stack.enter_context(closing(engine.bind(tensors, self._stream)))
            self._held = stack.pop_all()
        self._graph: Graph | None = None
        self._capture = not self._network.replays
        self._warm = False

    def run(self, arrays: Sequence[Array]) -> dict[str, Array]:
        for tensor, array in zip(self._inputs, arrays, strict=True):
            tensor.array[...] = array
        if self._graph is not None:
            self._graph.launch()
        else:
            self._queue()
        self._stream.wait()
        if self._warm and self._capture:
            # What has run twice allocates nothing more.
            self._capture = False
            if self._network.capturable:
                with suppress(CudaError):  # it goes on operation by operation
                    self._graph = self._stream.capture(self._queue)
        self._warm = True
        return {tensor.name: tensor.array.copy() for tensor in self._outputs}

    def _queue(self) -> None:
        for tensor in self._inputs:
            self._stream.copy_to_device(tensor.device, tensor.pinned, tensor.size)
        self._network.enqueue()
        for tensor in self._outputs:
            self._stream.copy_to_host(tensor.pinned, tensor.device, tensor.size)

    def close(self) -> None:
        with self._held:
            if self._graph is not None:
                self._graph.close()
