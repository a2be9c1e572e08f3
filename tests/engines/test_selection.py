from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle import Bundle, open_bundle
from engines.engine import EngineUnavailableError
from engines.errors import UserError
from engines.onnxruntime import cpu_count
from engines.selection import open_engine
from tests.bundles import write_segmenter_bundle

ort = pytest.importorskip("onnxruntime")
HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(write_segmenter_bundle(tmp_path_factory.mktemp("bundles") / "segmenter"))


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if the package of an engine's file were not installed."""

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(f"engines.{package.lower()}.import_module", missing)


def test_the_cpu_engine_tells_what_runs(bundle: Bundle) -> None:
    with open_engine(bundle, "onnxruntime-cpu", threads=1).engine as engine:
        assert engine.info.engine == "onnxruntime-cpu"
        assert engine.info.precision == "fp32"
        assert engine.info.device == "CPU, 1 threads"
        assert ort.__version__ in engine.info.version
        outputs = engine.run({"x": np.zeros((2, 1, 16, 16), np.float32)})
        assert outputs["probability"].shape == (2, 1, 16, 16)
        assert outputs["probability"] == pytest.approx(0.5)


def test_all_processors_are_used_by_default(bundle: Bundle) -> None:
    info = open_engine(bundle, "onnxruntime-cpu").engine.info
    assert info.device == f"CPU, {cpu_count()} threads"


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has a CUDA provider")
def test_auto_says_why_it_passed_over_the_others(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    without(monkeypatch, "MNN")
    without(monkeypatch, "openvino")
    selection = open_engine(bundle)
    assert selection.engine.info.engine == "onnxruntime-cpu"
    tensorrt, rtx, cuda, openvino, mnn = selection.passed_over
    assert re.match("tensorrt passed over: (no NVIDIA driver|CUDA_VISIBLE_DEVICES)", tensorrt)
    assert re.match("tensorrt-rtx passed over: (no NVIDIA driver|CUDA_VISIBLE_DEVICES)", rtx)
    assert cuda.startswith("onnxruntime-cuda passed over: this onnxruntime")
    assert "built without CUDAExecutionProvider" in cuda
    assert mnn == "mnn passed over: MNN is not installed: pip install 'emfast[mnn]'"
    assert openvino == (
        "openvino passed over: openvino is not installed: pip install 'emfast[openvino]'"
    )


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_without_a_gpu_is_one_clear_line(
    bundle: Bundle, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EngineUnavailableError) as error:
        open_engine(bundle, engine)
    assert re.match(f"engine {engine}: (no NVIDIA driver|CUDA_VISIBLE_DEVICES)", str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has a CUDA provider")
def test_a_named_engine_is_that_one_or_an_error(bundle: Bundle) -> None:
    with pytest.raises(EngineUnavailableError, match="engine onnxruntime-cuda: .* built without"):
        open_engine(bundle, "onnxruntime-cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="no onnxruntime with a CUDA provider")
def test_cuda_agrees_with_the_cpu(bundle: Bundle) -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 32, 32), dtype=np.float32)
    on_cpu = open_engine(bundle, "onnxruntime-cpu").engine.run({"x": x})
    on_cuda = open_engine(bundle, "onnxruntime-cuda").engine.run({"x": x})
    assert on_cuda["probability"] == pytest.approx(on_cpu["probability"], abs=1e-3)


def test_a_listed_provider_that_does_not_load_is_noticed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session falls back to the CPU without an error; the engine must not."""
    session = ort.InferenceSession

    def on_cpu(graph: str, options: Any, providers: Any) -> Any:
        return session(graph, options, providers=["CPUExecutionProvider"])

    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: listed)
    monkeypatch.setattr(ort, "InferenceSession", on_cpu)
    selection = open_engine(bundle)
    assert selection.engine.info.device.startswith("CPU")
    assert "lists CUDAExecutionProvider but cannot load it" in selection.passed_over[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "cuda"}, "unknown engine 'cuda'; accepted: auto, tensorrt, tensorrt-rtx,"),
        ({"precision": "int4"}, "unknown precision 'int4'; accepted: auto, fp32, fp16, int8"),
        ({"precision": "fp16"}, "has no fp16 graph"),
        ({"threads": 0}, "0 threads"),
    ],
)
def test_unknown_names(bundle: Bundle, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_engine(bundle, **arguments)


def with_precisions(bundle: Bundle, *precisions: str) -> Bundle:
    """The same graph under the names of other precisions."""
    graphs = dict.fromkeys(precisions, "model.onnx")
    return Bundle(bundle.path, replace(bundle.manifest, graphs=graphs))


def test_int8_runs_only_where_it_is_asked_for(bundle: Bundle) -> None:
    both = with_precisions(bundle, "int8", "fp32")
    assert open_engine(both).engine.info.precision == "fp32"
    for engine in ("auto", "onnxruntime-cpu"):
        info = open_engine(both, engine, "int8", threads=1).engine.info
        assert info.precision == "int8"
        assert info.device == "CPU, 1 threads"
    with pytest.raises(UserError, match="has graphs of int8 only; ask for it with --precision"):
        open_engine(with_precisions(bundle, "int8"))


def test_engines_of_gpus_take_no_int8(bundle: Bundle) -> None:
    both = with_precisions(bundle, "int8", "fp32")
    for line in open_engine(both, precision="int8").passed_over[:3]:
        assert line.endswith("passed over: it runs fp16 and fp32 graphs, not int8")
    with pytest.raises(EngineUnavailableError, match=r"engine tensorrt: it runs fp16 and fp32 gr"):
        open_engine(both, "tensorrt", "int8")


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has a CUDA provider")
def test_the_first_engines_of_a_cpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("MNN")
    pytest.importorskip("openvino")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert open_engine(bundle, threads=1).engine.info.engine == "openvino"
    without(monkeypatch, "openvino")
    assert open_engine(bundle, threads=1).engine.info.engine == "mnn"


def test_without_onnxruntime_the_extra_is_named(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "onnxruntime")
    without(monkeypatch, "MNN")
    without(monkeypatch, "openvino")
    with pytest.raises(EngineUnavailableError, match=r"pip install 'emfast\[cpu\]'"):
        open_engine(bundle)


def test_the_torch_engine_agrees_with_onnxruntime(bundle: Bundle) -> None:
    torch = pytest.importorskip("torch")
    from engines.torch import TorchEngine

    convolution = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False)
    torch.nn.init.constant_(convolution.weight, -4 / 9)
    module = torch.nn.Sequential(convolution, torch.nn.Sigmoid())
    x = np.random.default_rng(0).standard_normal((2, 1, 16, 24), dtype=np.float32)
    with TorchEngine(module, ["x"], ["probability"]) as reference:
        expected = reference.run({"x": x})["probability"]
    result = open_engine(bundle, "onnxruntime-cpu", threads=1).engine.run({"x": x})
    assert result["probability"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("package", ["engines.selection", "engines.bundle"])
def test_engines_need_neither_torch_nor_emfast(package: str) -> None:
    code = (
        f"import sys, {package}; "
        "sys.exit(any(m.split('.')[0] in ('torch', 'emfast', 'export') for m in sys.modules))"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
