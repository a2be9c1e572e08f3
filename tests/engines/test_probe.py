from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from engines.probe import (
    NETWORK,
    SIDE,
    packages,
    probe_gpus,
    probe_module,
    probe_provider,
)
from tests.environments import FAKES, add_package

Stub = Callable[[str], None]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Puts an onnxruntime on the path whose session does what is given."""

    def write(run: str) -> None:
        (tmp_path / "onnxruntime.py").write_text(
            "import os, signal\n"
            "class SessionOptions:\n"
            "    def add_session_config_entry(self, key, value): pass\n"
            "class InferenceSession:\n"
            "    def __init__(self, model, options, providers, enable_fallback):\n"
            "        self.providers = providers\n"
            "    def get_providers(self): return self.providers\n"
            f"    def run(self, outputs, inputs): {run}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))

    return write


def test_the_network_is_a_convolution_and_a_product() -> None:
    shape = [1, 1, SIDE, SIDE]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "ones"], ["sums"], pads=[1, 1, 1, 1]),
            helper.make_node("MatMul", ["sums", "x"], ["y"]),
        ],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("ones", TensorProto.FLOAT, [1, 1, 3, 3], [1.0] * 9)],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(built, full_check=True)
    assert onnx.load(NETWORK) == built


def test_the_cpu_provider_runs_it() -> None:
    pytest.importorskip("onnxruntime")
    assert probe_provider("CPUExecutionProvider").error is None


def test_a_provider_that_leaves_all_to_the_cpu_is_noticed() -> None:
    ort = pytest.importorskip("onnxruntime")
    if "AzureExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no provider that takes no nodes")
    error = probe_provider("AzureExecutionProvider").error
    assert error is not None and "fallback to CPU EP has been explicitly disabled" in error


@pytest.mark.gpu
def test_the_cuda_provider_runs_it() -> None:
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime was built without CUDA")
    assert probe_provider("CUDAExecutionProvider").error is None


@pytest.mark.parametrize(
    ("run", "error"),
    [
        ("return [inputs['x']]", "it ran, but its numbers are wrong"),
        ("raise RuntimeError('CUDA failure 2: out of memory')", "CUDA failure 2: out of memory"),
        ("os.write(2, b'fatal'); os.kill(os.getpid(), signal.SIGABRT)", "fatal\ncrashed (SIGABRT)"),
    ],
)
def test_providers_that_fail(stub: Stub, run: str, error: str) -> None:
    stub(run)
    assert (probe_provider("SomeExecutionProvider").error or "").strip() == error


def test_a_session_that_runs_on_another_provider(stub: Stub, tmp_path: Path) -> None:
    stub("return [inputs['x']]")
    text = (tmp_path / "onnxruntime.py").read_text()
    (tmp_path / "onnxruntime.py").write_text(
        text.replace("return self.providers", "return ['CPUExecutionProvider']")
    )
    error = probe_provider("SomeExecutionProvider").error
    assert error is not None and "runs on CPUExecutionProvider instead" in error


def test_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "whole.py").write_text("__version__ = '1.2'")
    (tmp_path / "broken.py").write_text("raise OSError('libx.so.1: cannot open shared object')")
    (tmp_path / "needy.py").write_text("import nothing_of_this_name")
    (tmp_path / "emptied/capi").mkdir(parents=True)
    add_package(tmp_path, "whole-package", "1.2.post1")
    whole = probe_module("whole", "whole-.*")
    assert (whole.version, whole.reason) == ("1.2", None)
    assert whole.packages == {"whole-package": "1.2.post1"}
    reasons = {
        "broken": "libx.so.1: cannot open shared object",
        "needy": "No module named 'nothing_of_this_name'",
        "emptied": "its folder is there, but its files are not",
        "absent": "not installed",
        "absent.part": "not installed",
    }
    assert {name: probe_module(name).reason for name in reasons} == reasons


def test_package_names_are_compared_as_pypi_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    add_package(tmp_path, "Tensor_RT.cu13-Libs", "11.4.0")
    assert packages("tensor-rt-cu13-libs", "no-such-package") == {"tensor-rt-cu13-libs": "11.4.0"}


def test_the_installed_onnxruntime_tells_its_providers() -> None:
    ort = pytest.importorskip("onnxruntime")
    module = probe_module("onnxruntime", "onnxruntime(-gpu)?")
    assert module.version == ort.__version__
    assert module.facts["providers"] == ort.get_available_providers()
    assert ort.__version__ in module.packages.values()


def test_tensorrt_rtx_tells_what_it_is_made_for() -> None:
    pytest.importorskip("tensorrt_rtx")
    made_for = probe_module("tensorrt_rtx").facts["compute_capabilities"]
    assert {"7.5", "8.6", "12.0"} <= set(made_for)
    assert "9.0" not in made_for
    assert made_for == sorted(made_for, key=float)


def test_cuda_says_why_it_reaches_no_gpu() -> None:
    pytest.importorskip("cuda.bindings")
    module = probe_module("cuda.bindings.runtime", "cuda-bindings")
    assert module.version == module.packages["cuda-bindings"]
    assert (module.facts["device"] is None) == (module.facts["reason"] is not None)


def test_gpus_are_asked_for_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FAKES / "nvml"))
    gpu = '{"name": "NVIDIA L4", "uuid": "GPU-1", "capability": [8, 9], "memory": 24000000000}'
    monkeypatch.setenv("FAKE_GPUS", f"[{gpu}]")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = probe_gpus()
    assert found.reason is None and found.doubt is None
    assert [g["compute_capability"] for g in found.gpus] == ["8.9"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hidden = probe_gpus()
    assert hidden.gpus == () and re.search("hides the 1 GPU of", hidden.reason or "")
