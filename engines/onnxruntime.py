"""onnxruntime on the CPU and on CUDA."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np

from engines.cuda import Stream
from engines.device import DeviceTensor
from engines.engine import Array, EngineInfo, EngineUnavailableError
from engines.errors import UserError

INSTALL = (
    "no onnxruntime is installed; install emfast with one extra: pip install 'emfast[cpu]', or "
    "'emfast[gpu]' for an NVIDIA GPU (never both)"
)
PROVIDERS = {"onnxruntime-cpu": "CPUExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider"}
# TF32 would round the FP32 layers of an FP16 graph to the digits that they were kept from.
CUDA_OPTIONS = {"use_tf32": "0"}

_log = logging.getLogger(__name__)


def import_onnxruntime() -> ModuleType:
    """The onnxruntime module; :class:`EngineUnavailableError` says which extra to install."""
    try:
        onnxruntime = import_module("onnxruntime")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime"
        reason = INSTALL if missing else f"onnxruntime does not load ({error})"
        raise EngineUnavailableError(reason) from None
    if onnxruntime.__file__ is None:  # the empty folder that an uninstalled package leaves
        raise EngineUnavailableError(
            "onnxruntime does not load (its files are gone); emfast doctor says how to mend it"
        )
    return onnxruntime


def cpu_count() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnnxRuntimeEngine:
    """One onnxruntime session.

    Args:
        graph: the ONNX file.
        name: "onnxruntime-cpu" or "onnxruntime-cuda".
        precision: of the graph, for :attr:`info`.
        threads: CPU threads; all processors of this process by default.

    Raises:
        EngineUnavailableError: onnxruntime or the provider cannot run here.
        UserError: the graph cannot be loaded.
    """

    def __init__(self, graph: Path, name: str, precision: str, threads: int | None = None) -> None:
        ort = import_onnxruntime()
        provider = PROVIDERS[name]
        version = f"onnxruntime {ort.__version__}"
        if provider not in ort.get_available_providers():
            raise EngineUnavailableError(f"this {version} was built without {provider}")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or cpu_count()
        options.log_severity_level = 3
        if name == "onnxruntime-cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN from the wheels of the gpu extra
        providers = (
            [provider]
            if name == "onnxruntime-cpu"
            else [(provider, CUDA_OPTIONS), PROVIDERS["onnxruntime-cpu"]]
        )
        self._graph = graph
        try:
            self._session = ort.InferenceSession(str(graph), options, providers=providers)
        except Exception as error:  # onnxruntime's errors share no public base class
            message = " ".join(str(error).split())
            kind = UserError if name == "onnxruntime-cpu" else EngineUnavailableError
            raise kind(f"{graph}: onnxruntime cannot load it ({message})") from None
        # Or else an error of the device in a run would go on on the CPU, with a line at most.
        self._session.disable_fallback()
        # A provider that is listed but cannot load is dropped without an error: only the
        # session tells which one runs.
        running = self._session.get_providers()[0]
        if running != provider:
            raise EngineUnavailableError(
                f"{version} lists {provider} but cannot load it (no driver, or CUDA or cuDNN "
                "libraries of another version); emfast doctor says which"
            )
        device = (
            f"CPU, {options.intra_op_num_threads} threads"
            if name == "onnxruntime-cpu"
            else "CUDA device 0"
        )
        self.info = EngineInfo(name, precision, device, version)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            values: list[Any] = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # onnxruntime's errors share no public base class
            message = " ".join(str(error).split())
            raise UserError(
                f"{self.info}: cannot run this input, too large for the memory or of a shape that "
                f"the network does not take ({message[:300]})"
            ) from None
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        del self._session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class OnnxRuntimeCudaEngine(OnnxRuntimeEngine):
    """An onnxruntime session on CUDA, which also runs on device memory of the caller's."""

    def bind(self, tensors: Mapping[str, DeviceTensor], stream: Stream) -> SessionBinding:
        return SessionBinding(self._graph, self.info, tensors, stream)


class SessionBinding:
    """A session of its own on device memory and a stream that the caller owns.

    onnxruntime captures its CUDA graph by itself in the first evaluation and replays it in the
    others. A capture of the caller's around an evaluation would end the process: onnxruntime
    launches its graph, or frees pinned memory, inside of it (its pull request 32081). A network
    with nodes on the CPU cannot be captured and is queued node by node.

    Args:
        graph: the ONNX file.
        info: of the engine, for messages.
        tensors: every input and output.
        stream: that evaluations are queued on.

    Raises:
        EngineUnavailableError: onnxruntime cannot bind the graph.
    """

    capturable = False
    replays = True

    def __init__(
        self, graph: Path, info: EngineInfo, tensors: Mapping[str, DeviceTensor], stream: Stream
    ) -> None:
        ort = import_onnxruntime()
        self._info = info
        self._run = ort.RunOptions()
        # Or else every run would end with the host waiting for the stream.
        self._run.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        cuda = {**CUDA_OPTIONS, "user_compute_stream": str(stream.handle)}

        def session(capture: bool) -> Any:
            one = (PROVIDERS["onnxruntime-cuda"], {**cuda, "enable_cuda_graph": str(int(capture))})
            providers = [one, PROVIDERS["onnxruntime-cpu"]]
            # Or else a provider that refuses its options would run without them, on its own stream.
            settings = {"providers": providers, "enable_fallback": 0}
            return ort.InferenceSession(str(graph), options, **settings)

        try:
            try:
                self._session = session(capture=True)
            except Exception as error:  # onnxruntime's errors share no public base class
                _log.warning("%s: runs without CUDA graphs (%s)", info, _one_line(error))
                self._session = session(capture=False)
            self._session.disable_fallback()
            inputs = {node.name for node in self._session.get_inputs()}
            self._binding = self._session.io_binding()
            for name, tensor in tensors.items():
                bind = self._binding.bind_input if name in inputs else self._binding.bind_output
                bind(name, "cuda", 0, np.dtype(tensor.dtype), tensor.shape, tensor.address)
        except Exception as error:
            raise EngineUnavailableError(
                f"onnxruntime cannot bind it to the device ({_one_line(error)})"
            ) from None

    def enqueue(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._run)
        except Exception as error:
            raise UserError(
                f"{self._info}: cannot run on bound memory ({_one_line(error)})"
            ) from None

    def close(self) -> None:
        del self._binding, self._session


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
