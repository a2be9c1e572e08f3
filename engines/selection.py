"""Choosing an engine, loudly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engines.bundle import PRECISIONS as GRAPH_PRECISIONS
from engines.bundle import Bundle
from engines.engine import Engine, EngineUnavailableError
from engines.errors import UserError
from engines.onnxruntime import OnnxRuntimeEngine

Opener = Callable[[Bundle, str, int | None], Engine]


def _onnxruntime(name: str) -> Opener:
    def opener(bundle: Bundle, precision: str, threads: int | None) -> Engine:
        return OnnxRuntimeEngine(bundle.graph(precision), name, precision, threads)

    return opener


@dataclass(frozen=True)
class Candidate:
    """An engine that ``auto`` may choose.

    Attributes:
        name: as ``--engine`` takes it.
        precisions: in the order that the engine is best served by.
        open: makes it, or raises :class:`EngineUnavailableError` with the reason.
    """

    name: str
    precisions: tuple[str, ...]
    open: Opener


# In the order that auto tries them: the fastest first.
CANDIDATES = (
    Candidate("onnxruntime-cuda", ("fp16", "fp32"), _onnxruntime("onnxruntime-cuda")),
    Candidate("onnxruntime-cpu", ("fp32", "fp16"), _onnxruntime("onnxruntime-cpu")),
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
    bundle: Bundle, engine: str = "auto", precision: str = "auto", threads: int | None = None
) -> Selection:
    """Open a bundle on an engine.

    Args:
        bundle: to run.
        engine: one of :data:`ENGINES`. "auto" takes the first that runs here; a name means that
            engine or an error.
        precision: one of :data:`PRECISIONS`. "auto" takes what suits the engine best among what
            the bundle has.
        threads: CPU threads; all processors of this process by default.

    Raises:
        UserError: unknown names, a precision that the bundle lacks, or no engine that runs.
    """
    if engine not in ENGINES:
        raise UserError(f"unknown engine {engine!r}; accepted: {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; accepted: {', '.join(PRECISIONS)}")
    if threads is not None and threads < 1:
        raise UserError(f"{threads} threads asked for; at least 1 is needed")
    passed_over: list[str] = []
    for candidate in CANDIDATES:
        if engine not in ("auto", candidate.name):
            continue
        wanted = precision
        if wanted == "auto":
            wanted = next(p for p in candidate.precisions if p in bundle.precisions)
        try:
            return Selection(candidate.open(bundle, wanted, threads), tuple(passed_over))
        except EngineUnavailableError as error:
            if engine != "auto":
                raise EngineUnavailableError(f"engine {engine}: {error}") from None
            passed_over.append(f"{candidate.name} passed over: {error}")
    raise EngineUnavailableError(f"no engine runs here. {'. '.join(passed_over)}")
