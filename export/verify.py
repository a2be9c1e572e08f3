"""Comparing engines with a reference before anything is kept.

What is compared is up to the caller: a :class:`Check` runs something on an engine and judges the
result against that of the reference. Every number that was looked at becomes a :class:`Measure`
with its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.bundle import PRECISIONS, TensorSpec
from engines.engine import Array, Engine
from engines.errors import UserError

Outputs = dict[str, Array]
# One evaluation of the network with FP32 inputs and outputs, as Engine.run.
Run = Callable[[Mapping[str, Array]], Outputs]


@dataclass(frozen=True)
class Measure:
    """One number and its limit.

    Attributes:
        name: of what was measured.
        value: measured; NaN never passes.
        limit: the largest value that passes, or the least.
        at_least: whether ``limit`` is the least value.
    """

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the value is within its limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        bound = "at least" if self.at_least else "at most"
        return f"{self.name} {self.value:.4g} ({bound} {self.limit:g})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        bound = "at_least" if self.at_least else "at_most"
        return {"name": self.name, "value": self.value, bound: self.limit}


@dataclass(frozen=True)
class Check:
    """Something that every engine must do as the reference does.

    Attributes:
        run: does it on an engine.
        judge: (precision, the reference's arrays, the engine's arrays) -> measures.
        precisions: of the engines that must do it.
    """

    run: Callable[[Run], Outputs]
    judge: Callable[[str, Outputs, Outputs], list[Measure]]
    precisions: Sequence[str] = PRECISIONS


@dataclass(frozen=True)
class Tolerance:
    """Largest errors of an output, relative to the root mean square of the reference's.

    Attributes:
        maximum: of the absolute error's maximum.
        mean: of the absolute error's mean.
    """

    maximum: float
    mean: float


def output_check(
    batches: Mapping[str, Mapping[str, Array]], tolerances: Mapping[str, Tolerance]
) -> Check:
    """A check of the network's outputs.

    Args:
        batches: the network's inputs, float32, under a name for each batch.
        tolerances: for each precision.
    """

    def run(network: Run) -> Outputs:
        return {
            f"{batch}, {output}": values
            for batch, inputs in batches.items()
            for output, values in network(inputs).items()
        }

    def judge(precision: str, expected: Outputs, got: Outputs) -> list[Measure]:
        limits = tolerances[precision]
        measures = []
        for name, reference in expected.items():
            maximum, mean = relative_errors(reference, got[name])
            measures.append(Measure(f"{name}: maximum error", maximum, limits.maximum))
            measures.append(Measure(f"{name}: mean error", mean, limits.mean))
        return measures

    return Check(run, judge)


def relative_errors(expected: Array, got: Array) -> tuple[float, float]:
    """Maximum and mean absolute error, divided by the root mean square of ``expected``.

    Where ``expected`` is 0 everywhere, the errors themselves. NaN where any number is.
    """
    reference = expected.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite minus infinite
        error = np.abs(got.astype(np.float64) - reference)
    scale = float(np.sqrt(np.mean(reference**2))) or 1.0
    return float(error.max()) / scale, float(error.mean()) / scale


def verify(
    reference: Run,
    candidates: Mapping[str, Run],
    checks: Sequence[Check],
    against: str = "PyTorch",
    precisions: Mapping[str, str] | None = None,
) -> dict[str, list[Measure]]:
    """Run all checks on the reference and on every engine.

    Args:
        reference: what is right.
        candidates: engines, each under the name of its precision or of :data:`precisions`.
        checks: what they must do alike.
        against: what the reference is, for the error.
        precisions: of engines that have another name.

    Returns:
        The measures of each engine.

    Raises:
        UserError: a measure is outside its limit.
    """
    names = {name: name for name in candidates} | dict(precisions or {})
    measures: dict[str, list[Measure]] = {name: [] for name in candidates}
    for check in checks:
        concerned = [name for name in candidates if names[name] in check.precisions]
        if not concerned:
            continue
        expected = check.run(reference)
        for name in concerned:
            measures[name] += check.judge(names[name], expected, check.run(candidates[name]))
    failures = [
        f"{name}: {measure}"
        for name, values in measures.items()
        for measure in values
        if not measure.passed
    ]
    if failures:
        raise UserError(
            f"verification against {against} failed, nothing was kept: {'; '.join(failures)}"
        )
    return measures


def float_run(engine: Engine, inputs: Sequence[TensorSpec]) -> Run:
    """Run an engine with FP32 inputs and outputs, whatever those of its graph are.

    Args:
        engine: to run.
        inputs: of its graph.
    """
    dtypes = {spec.name: np.dtype(spec.dtype) for spec in inputs}

    def run(values: Mapping[str, Array]) -> Outputs:
        cast = {k: v.astype(dtypes[k], copy=False) for k, v in values.items()}
        return {k: v.astype(np.float32, copy=False) for k, v in engine.run(cast).items()}

    return run
