"""``emfast doctor`` in this environment and in others; see tests/environments.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.environments import (
    FAKES,
    ROOT,
    both_packages,
    emfast,
    environment,
    gpu_package,
    neither,
)

pytest.importorskip("onnxruntime")
CUDA_13 = "needs CUDA 13.0 (libcublasLt.so.13), which is not installed"
H100 = {"name": "NVIDIA H100", "uuid": "GPU-1", "capability": [9, 0], "memory": 85_500_000_000}


def facts(env: dict[str, str], *options: str, code: int = 0) -> Any:
    result = emfast(env, "doctor", "--json", *options)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return json.loads(result.stdout)


def why(found: Any) -> dict[str, str]:
    return {provider["name"]: provider["reason"] for provider in found["providers"]}


def test_here_without_torch() -> None:
    hidden = {"PYTHONPATH": f"{FAKES / 'hidden'}:{ROOT}", "HIDDEN_MODULES": "torch,onnx"}
    result = emfast({**os.environ, **hidden}, "doctor")
    assert result.returncode == 0, result.stderr
    assert "CPUExecutionProvider" in result.stdout
    assert "5 files match SHA-256" in result.stdout
    assert "\nVerdict: emfast runs here, with " in result.stdout


def test_with_neither_package() -> None:
    found = facts(neither(), "--self-test", code=1)
    assert found["runs"] is False
    assert found["verdict"].startswith("nothing can run here: no onnxruntime is installed.")
    assert found["providers"] == []
    assert found["problems"][0]["commands"] == ["pip install 'emfast[cpu]'"]
    assert all(module["reason"] in ("not installed", None) for module in found["modules"])
    for choice in found["choices"]:
        assert choice["engine"] is None and len(choice["passed_over"]) == 6
    trials = found["self_test"]["trials"]
    assert [trial["state"] for trial in trials] == ["unavailable"] * 6
    assert found["self_test"]["passed"] is False


def test_with_onnxruntime_gpu_alone() -> None:
    found = facts(gpu_package())
    assert found["modules"][0]["packages"] == {"onnxruntime-gpu": "1.31.1"}
    assert why(found) == {
        "TensorrtExecutionProvider": "needs CUDA 13.0 (libcublas.so.13), which is not installed; "
        "emfast goes without it, its engine tensorrt calls TensorRT itself",
        "CUDAExecutionProvider": CUDA_13,
        "CPUExecutionProvider": None,
    }
    for choice in found["choices"]:
        assert choice["engine"]["engine"] == "onnxruntime-cpu"
        assert "lists CUDAExecutionProvider but cannot load it" in choice["passed_over"][2]
    assert found["problems"] == []  # nobody misses CUDA without a GPU


def test_with_onnxruntime_gpu_and_a_gpu_but_no_cuda_libraries() -> None:
    found = facts(gpu_package(gpus=[H100], ORT_TENSORRT_ERROR="tensorrt-without-tensorrt"))
    assert found["gpus"]["gpus"][0]["name"] == "NVIDIA H100"
    assert "needs TensorRT 10 (libnvinfer.so.10)" in why(found)["TensorrtExecutionProvider"]
    (problem,) = found["problems"]
    assert problem["what"] == "onnxruntime-gpu without its CUDA libraries"
    assert problem["commands"] == ["pip install 'onnxruntime-gpu[cuda,cudnn]==1.31.1'"]


def test_with_both_packages(tmp_path: Path) -> None:
    result = emfast(both_packages(tmp_path), "doctor")
    assert result.returncode == 0
    text = " ".join(result.stdout.split())
    assert "onnxruntime and onnxruntime-gpu side by side" in text
    assert "pip uninstall -y onnxruntime onnxruntime-gpu pip install onnxruntime" in text
    assert "1 problem to mend, see above." in text


def test_with_a_numpy_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('numpy is of another Python')")
    found = facts(environment(tmp_path), code=1)
    assert [problem["what"] for problem in found["problems"]] == ["numpy does not load"]


@pytest.mark.gpu
def test_the_self_test_on_a_gpu() -> None:
    result = emfast(os.environ, "doctor", "--self-test")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "For a bug report:" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("self-test passed: ")
