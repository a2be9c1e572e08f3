"""OpenVINO on the CPU."""

from __future__ import annotations

import copy
import math
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np

from engines.engine import Array, EngineInfo, EngineUnavailableError
from engines.errors import UserError
from engines.onnxruntime import cpu_count

INSTALL = "openvino is not installed: pip install 'emfast[openvino]'"
TELEMETRY = "openvino_telemetry"
# Shapes whose compiled networks are kept. Each holds the weights again, in its own layout.
SHAPES = 4

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


def import_openvino() -> ModuleType:
    """The openvino module; :class:`EngineUnavailableError` where it is missing or does not load."""
    try:
        with _without_telemetry():
            return import_module("openvino")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "openvino"
        reason = INSTALL if missing else f"openvino does not load ({error})"
        raise EngineUnavailableError(reason) from None


class OpenVINOEngine:
    """A network that OpenVINO compiles anew for every shape of its inputs.

    One compilation for all shapes would take as long once, but runs slower. A batch is cut into as
    many equal parts as its threads can share, which run side by side: no thread waits for another
    at the end of each layer, and less has to stay in a processor's cache. Results are the same to
    the bit for every batch size and number of threads, as far as was tried, but for FP32 batches
    that threads cannot share evenly: of small images, 128 x 128 pixels and less, they differed by
    rounding.

    Args:
        graph: the ONNX file.
        precision: of the graph, for :attr:`info`.
        threads: CPU threads; all processors of this process by default, and at most.

    Raises:
        EngineUnavailableError: OpenVINO is missing, does not run here or cannot load the graph.
    """

    def __init__(self, graph: Path, precision: str, threads: int | None = None) -> None:
        openvino = import_openvino()
        version = f"openvino {openvino.__version__.split('-')[0]}"
        self._core = openvino.Core()
        if "CPU" not in self._core.available_devices:
            raise EngineUnavailableError(f"this {version} has no CPU device")
        try:
            self._model = self._core.read_model(graph)
        except Exception as error:  # openvino raises RuntimeError and its subclasses
            reason = f"{graph}: {version} cannot load it ({_one_line(error)[:300]})"
            raise EngineUnavailableError(reason) from None
        self._graph = graph
        self._threads = threads = min(threads or cpu_count(), cpu_count())
        self._options = {
            "INFERENCE_NUM_THREADS": threads,
            # Threads are logical processors, as for the other engines.
            "ENABLE_HYPER_THREADING": True,
            # Pinned, processes that share a machine would all run on its first processors.
            "ENABLE_CPU_PINNING": False,
            # Or else OpenVINO computes in BF16 where the CPU can.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self.info = EngineInfo("openvino", precision, f"CPU, {threads} threads", version)
        self._names = {port.get_any_name() for port in self._model.inputs}
        self._requests: OrderedDict[tuple[Shapes, int], list[Any]] = OrderedDict()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if inputs.keys() != self._names:  # openvino would take what is missing as empty
            raise UserError(f"{self.info}: got {sorted(inputs)}; expected {sorted(self._names)}")
        parts = self._parts(inputs)
        shapes = tuple((name, array.shape) for name, array in parts[0].items())
        try:
            requests = self._compiled(shapes, len(parts))
            for request, part in zip(requests, parts, strict=True):
                request.start_async(part, share_inputs=True)
            for request in requests:
                request.wait()
        except Exception as error:  # openvino raises RuntimeError and its subclasses
            raise UserError(
                f"{self.info}: cannot run this input, too large for the memory or of a shape that "
                f"the network does not take ({_one_line(error)[:300]})"
            ) from None
        results = [request.results for request in requests]
        return {
            port.get_any_name(): np.concatenate([result[port] for result in results])
            for port in results[0]
        }

    def divide(self, tensor: str) -> tuple[Self, Self]:
        """As :meth:`engines.engine.DivisibleEngine.divide`."""
        openvino = import_openvino()
        giving, taking = self._model.clone(), self._model.clone()
        inner = _output(taking, tensor)
        if inner is None:
            raise UserError(f"{self._graph}: holds no tensor {tensor!r}")
        giving.add_outputs(tensor)
        parameter = openvino.opset13.parameter(
            inner.get_partial_shape(), inner.get_element_type(), name=tensor
        )
        parameter.output(0).set_names({tensor})
        for user in inner.get_target_inputs():
            user.replace_source_output(parameter.output(0))
        inner.set_names(set())  # the parameter bears it now
        taking.add_parameters([parameter])
        return self._with(giving), self._with(taking)

    def _with(self, model: Any) -> Self:
        """This engine with another network."""
        engine = copy.copy(self)
        engine._model = model
        engine._names = {port.get_any_name() for port in model.inputs}
        engine._requests = OrderedDict()
        return engine

    def _parts(self, inputs: Mapping[str, Array]) -> list[dict[str, Array]]:
        """The inputs, cut along their first axis, the batch, where they have the same one."""
        leading = {array.shape[:1] for array in inputs.values()}
        if len(leading) > 1 or () in leading:
            return [dict(inputs)]
        count = math.gcd(*leading.pop(), self._threads)
        cuts = [np.split(array, count) for array in inputs.values()]
        return [dict(zip(inputs, part, strict=True)) for part in zip(*cuts, strict=True)]

    def _compiled(self, shapes: Shapes, parts: int) -> list[Any]:
        """Requests for parts of these shapes; they become the last of those that are kept."""
        key = shapes, parts
        if self._requests and (last := next(reversed(self._requests))) != key:
            # Intermediate results stay allocated: hundreds of megabytes for a slice.
            self._requests[last][0].get_compiled_model().release_memory()
        if key not in self._requests:
            model = self._model.clone()
            model.reshape(dict(shapes))
            compiled = self._core.compile_model(
                model, "CPU", {**self._options, "NUM_STREAMS": parts}
            )
            self._requests[key] = [compiled.create_infer_request() for _ in range(parts)]
            if len(self._requests) > SHAPES:
                self._requests.popitem(last=False)
        self._requests.move_to_end(key)
        return self._requests[key]

    def close(self) -> None:
        self._requests.clear()
        del self._model, self._core

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Import openvino as if its telemetry package were missing, which it allows for.

    The import alone would report itself through Google Analytics.
    """
    if TELEMETRY in sys.modules:
        yield
        return
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # makes its import fail
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]


def _output(model: Any, tensor: str) -> Any:
    """The output of an operation that bears a tensor's name; None where there is none."""
    outputs = (output for operation in model.get_ops() for output in operation.outputs())
    return next((output for output in outputs if tensor in output.get_names()), None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
