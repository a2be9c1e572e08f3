from __future__ import annotations

import json
from typing import Any

import pytest

from emfast.doctor import self_test
from emfast.doctor.facts import BundleFacts
from emfast.doctor.self_test import SelfTest, Trial
from engines.isolated import Answer

BUNDLES = (
    BundleFacts("a", "denoiser", ("fp32", "fp16"), {}, None),
    BundleFacts("b", "segmenter", ("fp32",), {}, None),
)
PASSED = {"state": "passed", "reason": None, "run_seconds": 0.1}
Replies = dict[tuple[str, ...], Answer]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the self-test where every trial passes but those that are given."""

    def with_replies(replies: Replies, bundles: Any = BUNDLES) -> tuple[SelfTest, list[str]]:
        def ask(module: str, what: str, *arguments: str, timeout: float) -> Answer:
            if what == "candidates":
                return replies.get((what,), Answer(["tensorrt", "onnxruntime-cpu"], None, ""))
            bundle, engine, precision = arguments
            for key in ((engine,), (engine, bundle, precision)):
                if key in replies:
                    return replies[key]
            return Answer(dict(PASSED), None, "")

        told: list[str] = []
        monkeypatch.setattr(self_test, "ask", ask)
        return self_test.self_test(bundles, told.append), told

    return with_replies


def states(result: SelfTest) -> list[str]:
    return [trial.state for trial in result.trials]


def test_every_engine_on_every_graph(run: Any) -> None:
    result, told = run({})
    assert states(result) == ["passed"] * 6
    assert result.passed and result.verdict == "self-test passed: 6 passed, 0 failed."
    assert told[:3] == ["tensorrt, a, fp32", "tensorrt, a, fp16", "tensorrt, b, fp32"]


def test_what_cannot_run_here_is_no_failure(run: Any) -> None:
    unavailable = Answer({"state": "unavailable", "reason": "no driver"}, None, "")
    result, told = run({("tensorrt",): unavailable})
    assert result.trials[0] == Trial("tensorrt", None, None, "unavailable", "no driver")
    assert len(told) == 4  # asked once, not for each graph
    assert result.passed
    assert result.verdict.endswith("3 passed, 0 failed; cannot run here: tensorrt.")


def test_a_crash_is_a_failure_with_its_log(run: Any) -> None:
    log = "\n".join(f"line {i}" for i in range(100))
    crash = Answer(None, "crashed (SIGSEGV)", log)
    result, _ = run({("onnxruntime-cpu", "a", "fp16"): crash})
    (failed,) = result.of("failed")
    assert (failed.bundle, failed.precision, failed.reason) == ("a", "fp16", "crashed (SIGSEGV)")
    assert failed.facts["log"][-1] == "line 99" and len(failed.facts["log"]) == 20
    assert not result.passed
    assert result.verdict == "self-test FAILED: 5 passed, 1 failed."


def test_numbers_without_a_reference_do_not_pass(run: Any) -> None:
    unchecked = Answer({"state": "unchecked", "reason": "no reference"}, None, "")
    result, _ = run({("tensorrt",): unchecked, ("onnxruntime-cpu",): unchecked})
    assert not result.passed
    assert "6 without a reference to compare with" in result.verdict


def test_a_damaged_bundle_is_a_failure(run: Any) -> None:
    damaged = BundleFacts("c", None, (), {}, "model.onnx: was altered or damaged")
    result, _ = run({}, (*BUNDLES, damaged))
    assert result.trials[0].bundle == "c" and not result.passed


def test_where_not_even_the_engines_can_be_listed(run: Any) -> None:
    result, _ = run({("candidates",): Answer(None, "ImportError: numpy", "")})
    assert states(result) == ["failed"] and not result.passed


def test_json_has_no_nan() -> None:
    facts = {"summary": {"maximum error": float("nan")}, "measures": [{"value": float("inf")}]}
    values = Trial("tensorrt", "a", "fp16", "failed", "nan", facts).to_dict()
    text = json.dumps(values, allow_nan=False)
    assert json.loads(text)["summary"] == {"maximum error": None}
    assert json.loads(text)["measures"] == [{"value": None}]
