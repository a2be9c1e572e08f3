from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emfast.doctor import trial
from emfast.doctor.trial import attempt, candidates, choose
from engines.engine import EngineUnavailableError
from engines.gpu import NoGpuError
from engines.onnxruntime import OnnxRuntimeEngine
from engines.selection import Selection
from tests.bundles import write_denoiser_bundle, write_segmenter_bundle

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_denoiser_bundle(tmp_path_factory.mktemp("bundles") / "denoiser"))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_segmenter_bundle(tmp_path_factory.mktemp("bundles") / "segmenter"))


class Disagreeing(OnnxRuntimeEngine):
    """The CPU's engine with an error on each output."""

    error = 0.5

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v + np.float32(self.error) for k, v in super().run(inputs).items()}


def disagree(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    def opened(bundle: Any, engine: str, precision: str) -> Selection:
        network = Disagreeing(bundle.graph(precision), engine, precision)
        network.error = error
        return Selection(network, ())

    monkeypatch.setattr(trial, "_open", opened)


def test_an_engine_that_agrees(denoiser: str) -> None:
    result = attempt(denoiser, "onnxruntime-cpu", "fp32")
    assert result["state"] == "passed" and result["reason"] is None
    assert result["info"]["engine"] == "onnxruntime-cpu"
    assert result["run_of"] == "4 of 48 x 32 pixels"
    assert result["open_seconds"] > 0 and result["run_seconds"] > 0
    assert result["summary"] == {
        "maximum error": 0,
        "mean error": 0,
        "PSNR of the image": 100,
        "Dice of the mask": 1,
    }


def test_a_segmenter_is_compared_by_its_mask(segmenter: str) -> None:
    result = attempt(segmenter, "onnxruntime-cpu", "fp32")
    assert result["state"] == "passed"
    assert set(result["summary"]) == {"maximum error", "mean error", "Dice of the mask"}
    assert result["run_of"] == "1 of 1024 x 768 pixels"


def test_an_engine_that_disagrees_fails(segmenter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disagree(monkeypatch, error=0.5)
    result = attempt(segmenter, "onnxruntime-cpu", "fp32")
    assert result["state"] == "failed"
    assert "maximum error" in result["reason"] and "Dice of the mask" in result["reason"]
    assert result["summary"]["maximum error"] > 0.1


def test_nan_never_passes(denoiser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disagree(monkeypatch, error=float("nan"))
    result = attempt(denoiser, "onnxruntime-cpu", "fp32")
    assert result["state"] == "failed"
    assert np.isnan(result["summary"]["maximum error"])


def test_without_the_reference_nothing_passes(
    segmenter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*arguments: Any) -> None:
        raise EngineUnavailableError("no onnxruntime is installed")

    disagree(monkeypatch, error=0)
    monkeypatch.setattr(trial, "OnnxRuntimeEngine", missing)
    result = attempt(segmenter, "onnxruntime-cpu", "fp32")
    assert result["state"] == "unchecked"
    assert result["reason"] == "no reference: no onnxruntime is installed"


def test_tensorrt_without_a_gpu_is_no_failure(
    segmenter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise NoGpuError("no NVIDIA driver on this machine")

    monkeypatch.setattr(trial, "gpus", none)
    expected = {"state": "unavailable", "reason": "no NVIDIA driver on this machine"}
    assert attempt(segmenter, "tensorrt", "fp32") == expected


def test_tensorrt_that_does_not_build_is_a_failure(
    segmenter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(bundle: Any, shapes: Any, engine: str, precision: str) -> None:
        raise EngineUnavailableError(f"engine {engine}: verification failed, 0.7 (at most 0.05)")

    monkeypatch.setattr(trial, "_require", lambda engine: None)
    monkeypatch.setattr(trial, "open_runtime", fails)
    expected = {"state": "failed", "reason": "verification failed, 0.7 (at most 0.05)"}
    assert attempt(segmenter, "tensorrt", "fp32") == expected


def test_what_auto_takes(segmenter: str) -> None:
    result = choose(segmenter)
    assert result["engine"]["engine"] in candidates()
    assert result["reason"] is None


def test_why_nothing_runs(segmenter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for package in ("onnxruntime", "openvino", "mnn"):
        monkeypatch.setattr(f"engines.{package}.import_module", without)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = choose(segmenter)
    assert result["engine"] is None
    assert [line.partition(" ")[0] for line in result["passed_over"]] == candidates()
    assert result["passed_over"][-1].startswith("onnxruntime-cpu passed over: no onnxruntime is")


def test_a_bundle_that_cannot_be_opened(tmp_path: Path) -> None:
    assert "is not a bundle" in choose(str(tmp_path))["reason"]
