"""One engine opened, timed and compared with onnxruntime, in a process of its own.

Run as ``python -m emfast.doctor.trial``, through :func:`engines.isolated.ask`:

    candidates                       the engines that auto tries, in its order
    choose BUNDLE                    what auto takes
    try BUNDLE ENGINE PRECISION      one engine, compared with the reference
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from emfast.runtime import Shapes, default_profile, open_runtime
from emfast.verification import engine_checks
from engines.bundle import Bundle, open_bundle
from engines.engine import Engine, EngineUnavailableError
from engines.errors import UserError
from engines.gpu import gpus
from engines.isolated import answer
from engines.onnxruntime import OnnxRuntimeEngine
from engines.selection import CANDIDATES, Selection
from engines.tensorrt import FLAVOURS
from engines.tensorrt.library import check_device
from export.verify import Measure, float_run

REFERENCE = ("onnxruntime-cpu", "fp32")
RUNS = 3


def choose(name: str) -> dict[str, Any]:
    """What auto takes for a bundle, and why it passed over others."""
    try:
        bundle = open_bundle(name)
        selection = _open(bundle)
    except EngineUnavailableError as error:
        reasons = [_passed_over(bundle, engine) for engine in candidates()]
        return {"engine": None, "passed_over": reasons, "reason": str(error)}
    except UserError as error:
        return {"engine": None, "passed_over": [], "reason": str(error)}
    with selection.engine as engine:
        info = engine.info.to_dict()
    return {"engine": info, "passed_over": list(selection.passed_over), "reason": None}


def _passed_over(bundle: Bundle, engine: str) -> str:
    """Why an engine does not run, in the words of a selection."""
    try:
        _open(bundle, engine).engine.close()
    except EngineUnavailableError as error:
        return f"{engine} passed over: {_plain(error, engine)}"
    return f"{engine} passed over: it ran when it was tried again"


def _plain(error: EngineUnavailableError, engine: str) -> str:
    return str(error).removeprefix(f"engine {engine}: ")


def candidates() -> list[str]:
    """Names of the engines, in the order in which auto tries them."""
    return [candidate.name for candidate in CANDIDATES]


def attempt(name: str, engine: str, precision: str) -> dict[str, Any]:
    """Open an engine, run its checks against the reference and time it.

    Returns:
        ``state``: "unavailable" where this machine or its packages do not suit the engine,
        "failed" where they do and it does not work or disagrees, "unchecked" where it runs and
        there is no reference, or "passed"; and what was measured until then.
    """
    try:
        _require(engine)
    except EngineUnavailableError as error:
        return {"state": "unavailable", "reason": str(error)}
    bundle = open_bundle(name)
    start = time.perf_counter()
    try:
        selection = _open(bundle, engine, precision)
    except EngineUnavailableError as error:
        # Whatever suits TensorRT and does not build or verify is a failure.
        state = "failed" if engine in FLAVOURS else "unavailable"
        return {"state": state, "reason": _plain(error, engine)}
    except UserError as error:
        return {"state": "failed", "reason": str(error)}
    opened = time.perf_counter() - start
    with selection.engine as network:
        info = {"info": network.info.to_dict(), "open_seconds": opened}
        try:
            return {**info, **_compare(network, bundle, precision)}
        except UserError as error:
            return {**info, "state": "failed", "reason": str(error)}


def _require(engine: str) -> None:
    """:class:`EngineUnavailableError` where this machine or its packages do not suit TensorRT."""
    if engine in FLAVOURS:
        gpus()
        check_device(engine)


def _open(bundle: Bundle, engine: str = "auto", precision: str = "auto") -> Selection:
    """Open a bundle with the shapes of the commands' defaults, which then find it cached."""
    profile = default_profile(bundle)
    return open_runtime(bundle, Shapes(profile, profile), engine, precision)


def _compare(network: Engine, bundle: Bundle, precision: str) -> dict[str, Any]:
    inputs = bundle.manifest.inputs
    checks, where = engine_checks(bundle.manifest)
    run = float_run(network, inputs)
    measured = {"checked_on": where, **_timing(network, bundle)}
    try:
        graph = bundle.graph(REFERENCE[1])
        reference = OnnxRuntimeEngine(graph, *REFERENCE)
    except EngineUnavailableError as error:
        return {**measured, "state": "unchecked", "reason": f"no reference: {error}"}
    with reference:
        expect = float_run(reference, inputs)
        measures = [
            measure
            for check in checks
            for measure in check.judge(precision, check.run(expect), check.run(run))
        ]
    failed = [str(measure) for measure in measures if not measure.passed]
    return {
        **measured,
        "state": "failed" if failed else "passed",
        "reason": "; ".join(failed) or None,
        "reference": str(reference.info),
        "measures": [measure.to_dict() for measure in measures],
        "summary": _summary(measures),
    }


def _summary(measures: list[Measure]) -> dict[str, float]:
    """The worst of all batches of each kind of measure; NaN if any is."""
    kinds: dict[str, list[Measure]] = {}
    for measure in measures:
        kinds.setdefault(measure.name.rpartition(": ")[2], []).append(measure)
    return {
        kind: float((np.min if same[0].at_least else np.max)([m.value for m in same]))
        for kind, same in kinds.items()
    }


def _timing(network: Engine, bundle: Bundle) -> dict[str, Any]:
    """Median seconds of a run, after one to warm up, and what it ran."""
    profile = default_profile(bundle)
    free = {"batch": profile.batch.best, "height": profile.height.best, "width": profile.width.best}
    inputs = {
        spec.name: np.zeros(
            [axis if isinstance(axis, int) else free[axis] for axis in spec.shape], spec.dtype
        )
        for spec in bundle.manifest.inputs
    }
    network.run(inputs)
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        network.run(inputs)
        seconds.append(time.perf_counter() - start)
    return {
        "run_seconds": statistics.median(seconds),
        "run_of": f"{free['batch']} of {free['width']} x {free['height']} pixels",
    }


def _main(arguments: list[str]) -> Any:
    what, *rest = arguments
    return {"choose": choose, "candidates": candidates, "try": attempt}[what](*rest)  # type: ignore[operator]


if __name__ == "__main__":
    answer(_main)
