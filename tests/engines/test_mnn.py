from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines import mnn as module
from engines.bundle import Bundle, open_bundle
from engines.engine import Array, EngineUnavailableError
from engines.errors import UserError
from engines.mnn import MNNEngine
from engines.onnxruntime import OnnxRuntimeEngine
from engines.selection import open_engine

pytest.importorskip("MNN", reason="needs the extra mnn")
ROOT = Path(__file__).parents[2]


def noise(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def open_mnn(bundle: Bundle, threads: int | None = 1) -> MNNEngine:
    manifest = bundle.manifest
    return MNNEngine(bundle.graph("fp32"), manifest.inputs, manifest.outputs, threads)


@pytest.mark.parametrize(
    ("name", "shape"), [("epfl-denoiser", (2, 2, 128, 96)), ("epfl-segmenter", (2, 1, 128, 96))]
)
def test_shipped_networks_compute_what_onnxruntime_does(name: str, shape: tuple[int, ...]) -> None:
    """As exactly as direct convolutions: MNN's own choice of blocks errs 100 times as much."""
    bundle = open_bundle(name)
    inputs = {"x": noise(*shape)}
    if name == "epfl-denoiser":
        inputs["timestep"] = np.array([3, 650], np.float32)
    with (
        open_mnn(bundle) as engine,
        OnnxRuntimeEngine(bundle.graph("fp32"), "onnxruntime-cpu", "fp32", 1) as reference,
    ):
        ((output, got),) = engine.run(inputs).items()
        expected = reference.run(inputs)[output]
    error = np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2))
    assert error < 5e-6
    assert got.dtype == np.float32 and got.shape == expected.shape


def test_runs_repeat_to_the_bit() -> None:
    inputs = {"x": noise(2, 2, 64, 64), "timestep": np.array([3, 650], np.float32)}
    results = []
    for _ in range(2):
        with open_mnn(open_bundle("epfl-denoiser")) as engine:
            results += [engine.run(inputs)["prediction"] for _ in range(2)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_shapes_may_change_and_outputs_are_the_callers() -> None:
    with open_mnn(open_bundle("epfl-segmenter")) as engine:
        first = engine.run({"x": noise(1, 1, 32, 16)})["probability"]
        kept = first.copy()
        assert engine.run({"x": noise(3, 1, 16, 64)})["probability"].shape == (3, 1, 16, 64)
        np.testing.assert_array_equal(first, kept)
        first.fill(0)
        np.testing.assert_array_equal(engine.run({"x": noise(1, 1, 32, 16)})["probability"], kept)


def test_its_sigmoid_hides_what_is_not_a_number() -> None:
    """What the class says: the denoiser, which ends without one, shows it."""
    x = np.full((1, 1, 32, 32), np.nan, np.float32)
    with open_mnn(open_bundle("epfl-segmenter")) as engine:
        assert np.isfinite(engine.run({"x": x})["probability"]).all()
    with open_mnn(open_bundle("epfl-denoiser")) as engine:
        inputs = {"x": x.repeat(2, axis=1), "timestep": np.zeros(1, np.float32)}
        assert not np.isfinite(engine.run(inputs)["prediction"]).all()


def test_mistakes_are_one_line_and_leave_the_engine_usable() -> None:
    with open_mnn(open_bundle("epfl-segmenter")) as engine:
        for shape in ((1, 3, 16, 16), (16, 16), (1, 1, 16, 16, 1)):
            with pytest.raises(UserError, match=r"x has shape .*; expected \['batch', 1,"):
                engine.run({"x": noise(*shape)})
        with pytest.raises(UserError, match=r"got \['y'\]; expected \['x'\]"):
            engine.run({"y": noise(1, 1, 16, 16)})
        assert engine.run({"x": noise(1, 1, 16, 16)})["probability"].shape == (1, 1, 16, 16)
    with open_mnn(open_bundle("epfl-denoiser")) as engine:
        inputs = {"x": noise(1, 2, 30, 32), "timestep": np.zeros(1, np.float32)}
        with pytest.raises(UserError, match=r"cannot run x \(1, 2, 30, 32\), timestep \(1,\)"):
            engine.run(inputs)
        inputs["x"] = noise(1, 2, 32, 32)
        assert engine.run(inputs)["prediction"].shape == (1, 2, 32, 32)


def test_a_graph_that_cannot_be_converted_is_passed_over(tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"not a graph")
    manifest = open_bundle("epfl-segmenter").manifest
    with pytest.raises(EngineUnavailableError, match=r"model.onnx: MNN .* cannot convert it"):
        MNNEngine(graph, manifest.inputs, manifest.outputs)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'MNN'", name="MNN"), "emfast[mnn]"),
        (ImportError("libgomp.so.1: no such file"), "does not load (libgomp.so.1"),
    ],
)
def test_a_missing_package_is_passed_over_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, error: ImportError, reason: str
) -> None:
    def fails(name: str) -> None:
        raise error

    monkeypatch.setattr(module, "import_module", fails)
    monkeypatch.setattr("engines.openvino.import_module", fails)  # which would be taken before it
    selection = open_engine(open_bundle("epfl-segmenter"))
    (line,) = [line for line in selection.passed_over if line.startswith("mnn passed over: ")]
    assert reason in line
    with pytest.raises(EngineUnavailableError, match="engine mnn: MNN"):
        open_engine(open_bundle("epfl-segmenter"), "mnn")


def test_a_precision_that_it_lacks_is_told() -> None:
    with pytest.raises(EngineUnavailableError, match="engine mnn: it runs fp32 graphs, not fp16"):
        open_engine(open_bundle("epfl-segmenter"), "mnn", "fp16")


def test_standard_output_stays_clean_and_nobody_is_told() -> None:
    """MNN prints on import and on loading; its converter's command would install a logger."""
    code = (
        "import sys; from engines.bundle import open_bundle; "
        "from engines.selection import open_engine; "
        "engine = open_engine(open_bundle('epfl-segmenter'), 'mnn').engine; "
        "print(engine.info.engine); sys.exit('MNN.tools' in sys.modules or 'aliyun' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (ran.stdout, ran.stderr) == ("mnn\n", "")
