"""OpenVINO on the CPU."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Self

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

    One compilation for all shapes would take as long once, but runs slower. Results are the same
    to the bit for every batch size and number of threads, as far as was tried.

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
        threads = min(threads or cpu_count(), cpu_count())
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
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
        self._requests: OrderedDict[Shapes, Any] = OrderedDict()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if inputs.keys() != self._names:  # openvino would take what is missing as empty
            raise UserError(f"{self.info}: got {sorted(inputs)}; expected {sorted(self._names)}")
        shapes = tuple((name, array.shape) for name, array in inputs.items())
        try:
            results = self._request(shapes).infer(dict(inputs), share_inputs=True)
        except Exception as error:  # openvino raises RuntimeError and its subclasses
            raise UserError(
                f"{self.info}: cannot run this input, too large for the memory or of a shape that "
                f"the network does not take ({_one_line(error)[:300]})"
            ) from None
        return {port.get_any_name(): array for port, array in results.items()}

    def _request(self, shapes: Shapes) -> Any:
        """The compiled network for these shapes; it becomes the last of those that are kept."""
        if self._requests and next(reversed(self._requests)) != shapes:
            # Intermediate results stay allocated: hundreds of megabytes for a slice.
            self._requests[next(reversed(self._requests))].get_compiled_model().release_memory()
        if shapes not in self._requests:
            model = self._model.clone()
            model.reshape(dict(shapes))
            compiled = self._core.compile_model(model, "CPU", self._options)
            self._requests[shapes] = compiled.create_infer_request()
            if len(self._requests) > SHAPES:
                self._requests.popitem(last=False)
        self._requests.move_to_end(shapes)
        return self._requests[shapes]

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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
