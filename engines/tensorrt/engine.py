"""TensorRT and TensorRT for RTX: one runner for both."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from types import ModuleType
from typing import Self

import numpy as np

from engines.bundle import TensorSpec
from engines.cuda import OutOfDeviceMemoryError, Stream, free_memory, open_device
from engines.device import DeviceTensor
from engines.engine import Array, EngineInfo
from engines.errors import UserError
from engines.tensorrt.binding import ContextBinding
from engines.tensorrt.context import Caller, Contexts
from engines.tensorrt.library import TITLES, failure, import_tensorrt, open_runtime

CALLERS = 2
MEGABYTE = 1e6

_log = logging.getLogger(__name__)


class TensorRTEngine:
    """A serialised engine on the GPU, with one execution context for each concurrent caller.

    Device memory is taken for the largest shapes that were run, not for the largest that the
    engine takes. Shapes that repeat are replayed as a CUDA graph: copy in, run, copy out.

    Args:
        plan: the serialised engine.
        flavour: one of :data:`FLAVOURS`, of the version that built it.
        precision: of the graph, for :attr:`info`.
        inputs, outputs: of the bundle's manifest.
        kernels: file in which TensorRT-RTX keeps the kernels that it compiled for this GPU.
        callers: that run at once; further ones wait.

    Raises:
        EngineUnavailableError: no such package, no driver or no GPU.
        UserError: TensorRT refuses the engine, or it is one of another network.
    """

    def __init__(
        self,
        plan: bytes,
        flavour: str,
        precision: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        kernels: Path | None = None,
        callers: int = CALLERS,
    ) -> None:
        trt = import_tensorrt(flavour)
        device = open_device()
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._weights = len(plan)
        self._runtime = open_runtime(trt, flavour)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        title = TITLES[flavour]
        if self._engine is None:
            raise failure(flavour, f"{trt.__version__} refuses the engine")
        self.info = EngineInfo(flavour, precision, str(device), f"{title} {trt.__version__}")
        self._check_tensors(trt)
        shapes = self._engine.get_tensor_profile_shape(self._inputs[0].name, 0)
        self._minimum, _, self._maximum = (tuple(shape) for shape in shapes)
        self._batch = self._maximum[0]
        self._contexts = Contexts(trt, self._engine, flavour, kernels)
        self._callers, self._most_callers = [self._new_caller()], callers
        self._idle: SimpleQueue[Caller] = SimpleQueue()
        self._idle.put(self._callers[0])
        self._lock = Lock()

    @property
    def memory(self) -> int:
        """Bytes of device memory: the weights, and the buffers of what was run so far."""
        return self._weights + sum(caller.memory for caller in self._callers)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._check_shape(inputs[self._inputs[0].name].shape)
        batch = len(inputs[self._inputs[0].name])
        while True:
            limit = self._batch
            try:
                parts = [
                    self._run_part({k: v[i : i + limit] for k, v in inputs.items()})
                    for i in range(0, batch, limit)
                ]
            except OutOfDeviceMemoryError as error:
                self._lower_batch(min(limit, batch), error)
                continue
            if len(parts) == 1:
                return parts[0]
            return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

    def bind(self, tensors: Mapping[str, DeviceTensor], stream: Stream) -> ContextBinding:
        shape = tensors[self._inputs[0].name].shape
        self._check_shape(shape)
        if not self._minimum[0] <= shape[0] <= self._maximum[0]:
            raise UserError(
                f"{self.info}: a batch of {shape[0]} is not one of the {self._minimum[0]} to "
                f"{self._maximum[0]} that this engine was built for"
            )
        return ContextBinding(self._contexts, self._inputs, self.info, tensors, stream)

    def close(self) -> None:
        for caller in self._callers:
            caller.close()
        self._contexts.close()
        del self._contexts, self._engine, self._runtime

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run_part(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run a part of a batch; one below the engine's least batch is filled up with zeros."""
        count = len(inputs[self._inputs[0].name])
        missing = self._minimum[0] - count
        if missing > 0:
            inputs = {
                k: np.concatenate([v, np.zeros((missing, *v.shape[1:]), v.dtype)])
                for k, v in inputs.items()
            }
        caller = self._take_caller()
        try:
            outputs = caller.run(inputs)
        finally:
            self._idle.put(caller)
        return {k: v[:count] for k, v in outputs.items()} if missing > 0 else outputs

    def _take_caller(self) -> Caller:
        try:
            return self._idle.get_nowait()
        except Empty:
            pass
        with self._lock:
            if len(self._callers) < self._most_callers:
                self._callers.append(self._new_caller())
                return self._callers[-1]
        return self._idle.get()

    def _new_caller(self) -> Caller:
        return Caller(self._contexts, self._inputs, self._outputs, self.info)

    def _lower_batch(self, batch: int, error: OutOfDeviceMemoryError) -> None:
        """Halve the batch that runs at once, or tell that not even the least one fits."""
        with self._lock:
            if batch <= self._minimum[0]:
                raise UserError(
                    f"{self.info}: the device has no memory for a batch of {batch} "
                    f"({free_memory() / MEGABYTE:.0f} MB are free; {error}); stop what else "
                    "runs on it, or take smaller images"
                ) from None
            self._batch = min(self._batch, max(batch // 2, self._minimum[0]))
            _log.warning(
                "%s: no memory for a batch of %d; going on with batches of %d",
                self.info,
                batch,
                self._batch,
            )

    def _check_tensors(self, trt: ModuleType) -> None:
        """Refuse an engine whose inputs and outputs are not the manifest's."""
        modes = {trt.TensorIOMode.INPUT: "input", trt.TensorIOMode.OUTPUT: "output"}
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        has = {
            name: (
                modes[self._engine.get_tensor_mode(name)],
                np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))).name,
            )
            for name in names
        }
        wants = {s.name: ("input", s.dtype) for s in self._inputs}
        wants |= {s.name: ("output", s.dtype) for s in self._outputs}
        if has != wants:
            raise UserError(f"the engine has the tensors {has}, but the bundle has {wants}")

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse images of a size that the engine was not built for; any batch can be run."""
        bounds = zip(shape[1:], self._minimum[1:], self._maximum[1:], strict=True)
        if not all(low <= size <= high for size, low, high in bounds):
            raise UserError(
                f"{self.info}: cannot run {' x '.join(map(str, shape))}; this engine was built for "
                f"{' x '.join(map(str, self._minimum))} to {' x '.join(map(str, self._maximum))} "
                "(batch x channels x height x width)"
            )
