from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from engines.bundle import TensorSpec
from engines.engine import Array, EngineInfo
from engines.errors import UserError
from export.verify import (
    Check,
    Measure,
    Outputs,
    Run,
    Tolerance,
    float_run,
    output_check,
    relative_errors,
    verify,
)

TOLERANCES = {"fp32": Tolerance(1e-3, 1e-4), "fp16": Tolerance(1e-1, 2e-2)}
BATCHES = {"a": {"x": np.full((1, 4), 2, np.float32)}, "b": {"x": np.ones((3, 4), np.float32)}}


def doubled(error: float = 0.0) -> Run:
    """y = 2 x, with an error in its first number."""

    def run(inputs: Mapping[str, Array]) -> Outputs:
        y = np.array(inputs["x"] * np.float32(2), dtype=np.float32)
        y.flat[0] += error
        return {"y": y}

    return run


def test_errors_are_relative_to_the_root_mean_square_of_the_reference() -> None:
    check = output_check(BATCHES, TOLERANCES)
    measures = verify(doubled(), {"fp32": doubled(), "fp16": doubled(0.16)}, [check])
    assert [m.value for m in measures["fp32"]] == [0, 0, 0, 0]
    assert [m.name for m in measures["fp16"]][:2] == ["a, y: maximum error", "a, y: mean error"]
    # Batch a is 4 everywhere and has 4 numbers, b is 2 and has 12.
    expected = [0.16 / 4, 0.16 / 4 / 4, 0.16 / 2, 0.16 / 2 / 12]
    assert [m.value for m in measures["fp16"]] == pytest.approx(expected, rel=1e-5)


def test_an_error_beyond_the_tolerance_fails_with_its_numbers() -> None:
    check = output_check(BATCHES, TOLERANCES)
    with pytest.raises(UserError) as error:
        verify(doubled(), {"fp32": doubled(0.04), "fp16": doubled(0.04)}, [check])
    message = str(error.value)
    assert "nothing was kept" in message
    assert "fp32: a, y: maximum error 0.01 (at most 0.001)" in message
    assert "fp16" not in message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_never_passes(bad: float) -> None:
    check = output_check(BATCHES, {"fp32": Tolerance(np.inf, 1e9)})
    with pytest.raises(UserError, match=r"mean error (nan|inf)"):
        verify(doubled(), {"fp32": doubled(bad)}, [check])
    # Nor where the reference has it, even if the engine agrees.
    with pytest.raises(UserError, match="error nan"):
        verify(doubled(bad), {"fp32": doubled(bad)}, [check])


def test_a_reference_of_zeros_leaves_absolute_errors() -> None:
    zeros = np.zeros(4, np.float32)
    assert relative_errors(zeros, zeros) == (0, 0)
    assert relative_errors(zeros, zeros + np.float32(0.5)) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("value", "at_least", "passed"),
    [(1, False, True), (1.1, False, False), (1, True, True), (0.9, True, False)],
)
def test_limits_hold_in_their_direction(value: float, at_least: bool, passed: bool) -> None:
    assert Measure("m", value, 1.0, at_least).passed is passed
    assert Measure("m", float("nan"), 1.0, at_least).passed is False


def test_the_reference_runs_once_for_all_precisions() -> None:
    runs: list[str] = []

    def named(name: str) -> Run:
        def run(inputs: Mapping[str, Array]) -> Outputs:
            runs.append(name)
            return dict(inputs)

        return run

    seen: list[str] = []

    def judge(precision: str, expected: Outputs, got: Outputs) -> list[Measure]:
        seen.append(precision)
        return [Measure("same", float(np.abs(expected["x"] - got["x"]).max()), 0.0)]

    check = Check(lambda network: network(BATCHES["a"]), judge)
    verify(named("torch"), {"fp32": named("fp32"), "fp16": named("fp16")}, [check, check])
    assert runs == ["torch", "fp32", "fp16"] * 2
    assert seen == ["fp32", "fp16"] * 2


def test_an_engine_of_another_name_is_judged_by_its_precision() -> None:
    check = output_check(BATCHES, TOLERANCES)
    candidates = {"fp16": doubled(0.04), "fp16, other": doubled(0.04)}
    measures = verify(doubled(), candidates, [check], precisions={"fp16, other": "fp16"})
    assert measures["fp16, other"] == measures["fp16"]
    with pytest.raises(UserError, match="nothing was kept: fp16, other: a, y: maximum error"):
        verify(doubled(), candidates, [check], precisions={"fp16, other": "fp32"})


def test_a_check_of_other_precisions_does_not_even_run_the_reference() -> None:
    def judge(*_: object) -> list[Measure]:
        raise AssertionError("judged")

    check = Check(lambda network: network({}), judge, ("int8",))

    def never(_: object) -> Outputs:
        raise AssertionError("ran")

    assert verify(never, {"fp32": never}, [check]) == {"fp32": []}


def test_float_run_hides_fp16_inputs_and_outputs() -> None:
    class Half:
        info = EngineInfo("test", "fp16", "CPU", "1")

        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            assert inputs["x"].dtype == np.float16
            assert inputs["timestep"].dtype == np.float32
            return {"y": inputs["x"]}

        def close(self) -> None: ...

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *exception: object) -> None: ...

    inputs = [TensorSpec("x", "float16", (1,), ""), TensorSpec("timestep", "float32", (1,), "")]
    values = {"x": np.ones(1, np.float32), "timestep": np.ones(1, np.float32)}
    assert float_run(Half(), inputs)(values)["y"].dtype == np.float32
