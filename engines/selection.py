"""Choosing an engine, loudly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines.bundle import PRECISIONS as GRAPH_PRECISIONS
from engines.bundle import Bundle
from engines.engine import Engine, EngineUnavailableError
from engines.errors import UserError
from engines.gpu import gpus
from engines.mnn import MNNEngine
from engines.onnxruntime import OnnxRuntimeCudaEngine, OnnxRuntimeEngine
from engines.openvino import OpenVINOEngine
from engines.tensorrt import TensorRTEngine
from engines.tensorrt.library import check_device


@dataclass(frozen=True)
class Plan:
    """An engine file for the GPU of this machine.

    Attributes:
        data: the serialised engine.
        kernels: where TensorRT-RTX keeps what it compiles for this GPU.
    """

    data: bytes
    kernels: Path | None = None


# Gives the engine file of a bundle's graph: (flavour, precision) -> plan.
Plans = Callable[[str, str], Plan]


@dataclass(frozen=True)
class Request:
    """What an engine is opened for: the arguments of :func:`open_engine`."""

    bundle: Bundle
    precision: str
    threads: int | None
    plans: Plans | None


Opener = Callable[[Request], Engine]


def _onnxruntime(name: str) -> Opener:
    def opener(request: Request) -> Engine:
        graph = request.bundle.graph(request.precision)
        made = OnnxRuntimeCudaEngine if name == "onnxruntime-cuda" else OnnxRuntimeEngine
        return made(graph, name, request.precision, request.threads)

    return opener


def _openvino(request: Request) -> Engine:
    graph = request.bundle.graph(request.precision)
    return OpenVINOEngine(graph, request.precision, request.threads)


def _mnn(request: Request) -> Engine:
    manifest = request.bundle.manifest
    graph = request.bundle.graph(request.precision)
    return MNNEngine(graph, manifest.inputs, manifest.outputs, request.threads)


def _tensorrt(flavour: str) -> Opener:
    def opener(request: Request) -> Engine:
        gpus()
        check_device(flavour)
        if request.plans is None:
            raise EngineUnavailableError("no engine file was given")
        manifest = request.bundle.manifest
        try:
            plan = request.plans(flavour, request.precision)
            return TensorRTEngine(
                plan.data,
                flavour,
                request.precision,
                manifest.inputs,
                manifest.outputs,
                plan.kernels,
            )
        except UserError as error:  # of a build, a verification or a driver that refuses it
            raise EngineUnavailableError(str(error)) from None

    return opener


@dataclass(frozen=True)
class Candidate:
    """An engine that ``auto`` may choose.

    Attributes:
        name: as ``--engine`` takes it.
        precisions: that it runs, in the order that it is best served by.
        open: makes it, or raises :class:`EngineUnavailableError` with the reason.
    """

    name: str
    precisions: tuple[str, ...]
    open: Opener


# Precisions that auto leaves alone: they are quantized to one set of data, which the user knows.
ON_REQUEST = ("int8",)
# In the order that auto tries them: the fastest first, GPUs before CPUs.
CANDIDATES = (
    Candidate("tensorrt", ("fp16", "fp32"), _tensorrt("tensorrt")),
    Candidate("tensorrt-rtx", ("fp16", "fp32"), _tensorrt("tensorrt-rtx")),
    Candidate("onnxruntime-cuda", ("fp16", "fp32"), _onnxruntime("onnxruntime-cuda")),
    Candidate("openvino", ("fp32", "fp16", "int8"), _openvino),
    Candidate("mnn", ("fp32",), _mnn),
    Candidate("onnxruntime-cpu", ("fp32", "fp16", "int8"), _onnxruntime("onnxruntime-cpu")),
)
ENGINES = ("auto", *(c.name for c in CANDIDATES))
PRECISIONS = ("auto", *GRAPH_PRECISIONS)


@dataclass(frozen=True)
class Selection:
    """An engine and how it came to be chosen.

    Attributes:
        engine: ready to run.
        passed_over: one line for each engine that ``auto`` would have preferred, with the reason.
    """

    engine: Engine
    passed_over: tuple[str, ...]


def open_engine(
    bundle: Bundle,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    plans: Plans | None = None,
) -> Selection:
    """Open a bundle on an engine.

    Args:
        bundle: to run.
        engine: one of :data:`ENGINES`. "auto" takes the first that runs here; a name means that
            engine or an error.
        precision: one of :data:`PRECISIONS`. "auto" takes what suits the engine best among what
            the bundle has, but none of :data:`ON_REQUEST`.
        threads: CPU threads; all processors of this process by default.
        plans: gives TensorRT its engine files; without it TensorRT is passed over.

    Raises:
        UserError: unknown names, a precision that the bundle lacks, or no engine that runs.
    """
    if engine not in ENGINES:
        raise UserError(f"unknown engine {engine!r}; accepted: {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; accepted: {', '.join(PRECISIONS)}")
    if threads is not None and threads < 1:
        raise UserError(f"{threads} threads asked for; at least 1 is needed")
    if precision != "auto":
        bundle.graph(precision)
    elif set(bundle.precisions) <= set(ON_REQUEST):
        has = ", ".join(bundle.precisions)
        raise UserError(f"{bundle.path}: has graphs of {has} only; ask for it with --precision")
    passed_over: list[str] = []
    for candidate in CANDIDATES:
        if engine not in ("auto", candidate.name):
            continue
        try:
            request = Request(bundle, _precision(candidate, bundle, precision), threads, plans)
            return Selection(candidate.open(request), tuple(passed_over))
        except EngineUnavailableError as error:
            if engine != "auto":
                raise EngineUnavailableError(f"engine {engine}: {error}") from None
            passed_over.append(f"{candidate.name} passed over: {error}")
    raise EngineUnavailableError(f"no engine runs here. {'. '.join(passed_over)}")


def _precision(candidate: Candidate, bundle: Bundle, wanted: str) -> str:
    """The precision that an engine shall run; ``wanted`` may be "auto"."""
    if wanted == "auto":
        usual = (p for p in candidate.precisions if p not in ON_REQUEST)
        return next(p for p in usual if p in bundle.precisions)
    if wanted not in candidate.precisions:
        raise EngineUnavailableError(
            f"it runs {' and '.join(candidate.precisions)} graphs, not {wanted}"
        )
    return wanted
