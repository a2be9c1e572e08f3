from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from engines import openvino as module
from engines.bundle import Bundle, open_bundle
from engines.engine import Array, DivisibleEngine, EngineUnavailableError
from engines.errors import UserError
from engines.onnxruntime import OnnxRuntimeEngine, cpu_count
from engines.openvino import SHAPES, OpenVINOEngine
from engines.selection import open_engine
from tests.bundles import write_denoiser_bundle, write_segmenter_bundle

pytest.importorskip("openvino", reason="needs the extra openvino")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(write_segmenter_bundle(tmp_path_factory.mktemp("bundles") / "segmenter"))


def noise(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("name", "shape"), [("epfl-denoiser", (2, 2, 64, 96)), ("epfl-segmenter", (2, 1, 64, 48))]
)
def test_shipped_networks_compute_what_onnxruntime_does(name: str, shape: tuple[int, ...]) -> None:
    """In FP32: in BF16, OpenVINO's choice where the CPU has it, errors are some percent."""
    graph = open_bundle(name).graph("fp32")
    inputs = {"x": noise(*shape)}
    if name == "epfl-denoiser":
        inputs["timestep"] = np.array([3, 650], np.float32)
    with (
        OpenVINOEngine(graph, "fp32", 1) as engine,
        OnnxRuntimeEngine(graph, "onnxruntime-cpu", "fp32", 1) as reference,
    ):
        ((output, got),) = engine.run(inputs).items()
        expected = reference.run(inputs)[output]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, atol=1e-5 * scale)


def test_a_batch_has_the_bits_of_its_images_and_threads_change_none() -> None:
    graph = open_bundle("epfl-denoiser").graph("fp32")
    x, t = noise(9, 2, 32, 96), np.linspace(0, 699, 9).round().astype(np.float32)
    results = []
    for batch, threads in ((1, 1), (3, 1), (8, 1), (4, None)):
        with OpenVINOEngine(graph, "fp32", threads) as engine:
            parts = (slice(i, i + batch) for i in range(0, 9, batch))
            runs = [engine.run({"x": x[p], "timestep": t[p]})["prediction"] for p in parts]
            results.append(np.concatenate(runs))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_a_graph_is_divided_inside(tmp_path: Path) -> None:
    bundle = open_bundle(write_denoiser_bundle(tmp_path / "denoiser", features="inside"))
    inputs: dict[str, Array] = {"x": noise(3, 2, 32, 48), "timestep": np.zeros(3, np.float32)}
    with OpenVINOEngine(bundle.graph("fp32"), "fp32", 1) as engine:
        assert isinstance(engine, DivisibleEngine)
        expected = engine.run(inputs)["prediction"]
        giving, taking = engine.divide("inside")
        with giving, taking:
            assert giving.info == taking.info == engine.info
            given = giving.run(inputs)
            assert set(given) == {"prediction", "inside"}
            np.testing.assert_array_equal(given["prediction"], expected)
            taken = taking.run({**inputs, "inside": given["inside"]})
            assert set(taken) == {"prediction"}
            np.testing.assert_array_equal(taken["prediction"], expected)
            # What is computed from x is the tensor alone.
            other = taking.run({**inputs, "x": inputs["x"] * 2, "inside": given["inside"] + 1})
            np.testing.assert_allclose(other["prediction"], expected + 1, rtol=1e-6)
            with pytest.raises(UserError, match="expected .'inside', 'timestep', 'x'"):
                taking.run(inputs)
        np.testing.assert_array_equal(engine.run(inputs)["prediction"], expected)
        with pytest.raises(UserError, match=r"model.onnx: holds no tensor 'outside'"):
            engine.divide("outside")


@pytest.mark.skipif(cpu_count() < 2, reason="needs two processors")
def test_threads_share_a_batch(bundle: Bundle) -> None:
    x = noise(6, 1, 32, 48)
    with OpenVINOEngine(bundle.graph("fp32"), "fp32", 2) as engine:
        whole = engine.run({"x": x})["probability"]
        odd = engine.run({"x": x[:3]})["probability"]
        parts = {(shapes[0][1][0], parts) for shapes, parts in engine._requests}
    assert parts == {(3, 2), (3, 1)}
    np.testing.assert_array_equal(odd, whole[:3])
    with OnnxRuntimeEngine(bundle.graph("fp32"), "onnxruntime-cpu", "fp32") as reference:
        np.testing.assert_allclose(whole, reference.run({"x": x})["probability"], atol=1e-5)


def test_outputs_are_the_callers(bundle: Bundle) -> None:
    with OpenVINOEngine(bundle.graph("fp32"), "fp32", 1) as engine:
        first = engine.run({"x": noise(1, 1, 16, 16)})["probability"]
        kept = first.copy()
        second = engine.run({"x": -noise(1, 1, 16, 16)})["probability"]
        np.testing.assert_array_equal(first, kept)
        assert not np.array_equal(first, second)
        first.fill(0)
        again = engine.run({"x": noise(1, 1, 16, 16)})["probability"]
    np.testing.assert_array_equal(again, kept)


def test_shapes_beyond_those_that_are_kept(bundle: Bundle) -> None:
    x = {side: noise(1, 1, side, 16) for side in range(16, 16 * (SHAPES + 4), 16)}
    with OpenVINOEngine(bundle.graph("fp32"), "fp32", 1) as engine:
        first = {side: engine.run({"x": a})["probability"] for side, a in x.items()}
        assert len(engine._requests) == SHAPES
        for side, array in x.items():
            assert first[side].shape == array.shape
            np.testing.assert_array_equal(engine.run({"x": array})["probability"], first[side])


def test_info_tells_what_runs(bundle: Bundle) -> None:
    import openvino

    info = OpenVINOEngine(bundle.graph("fp32"), "fp32", 1).info
    assert (info.engine, info.precision, info.device) == ("openvino", "fp32", "CPU, 1 threads")
    assert re.fullmatch(r"openvino \d+\.\d+\.\d+", info.version)
    assert openvino.__version__.startswith(info.version.split()[1])
    # It has no more threads than processors.
    for threads in (None, 4096):
        info = OpenVINOEngine(bundle.graph("fp32"), "fp32", threads).info
        assert info.device == f"CPU, {cpu_count()} threads"


@pytest.mark.skipif(
    not Path("/proc/self/task").is_dir() or cpu_count() < 2, reason="needs /proc, two processors"
)
def test_threads_are_not_bound_to_processors() -> None:
    """Two processes of one thread each would share the first processor, and leave the second."""
    x, t = noise(1, 2, 256, 256), np.zeros(1, np.float32)
    seen = set()
    with (
        OpenVINOEngine(open_bundle("epfl-denoiser").graph("fp32"), "fp32", 1) as engine,
        ThreadPoolExecutor(1) as background,
    ):
        runs = [background.submit(engine.run, {"x": x, "timestep": t}) for _ in range(3)]
        while not all(run.done() for run in runs):
            for path in Path("/proc/self/task").iterdir():
                with suppress(ProcessLookupError):
                    seen.add(frozenset(os.sched_getaffinity(int(path.name))))
    assert seen == {frozenset(os.sched_getaffinity(0))}


def test_mistakes_are_one_line(bundle: Bundle) -> None:
    with OpenVINOEngine(bundle.graph("fp32"), "fp32", 1) as engine:
        for wrong in ({"x": noise(1, 3, 16, 16)}, {"x": noise(16, 16)}):
            with pytest.raises(UserError, match=r"openvino .* cannot run this input") as error:
                engine.run(wrong)
            assert "\n" not in str(error.value)
        with pytest.raises(UserError, match=r"got \['y'\]; expected \['x'\]"):
            engine.run({"y": noise(1, 1, 16, 16)})
        assert engine.run({"x": noise(1, 1, 16, 16)})["probability"].shape == (1, 1, 16, 16)


def test_a_graph_that_cannot_be_loaded_is_passed_over(tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"not a graph")
    with pytest.raises(EngineUnavailableError, match=r"model.onnx: openvino .* cannot load it"):
        OpenVINOEngine(graph, "fp32")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'openvino'", name="openvino"), "emfast[openvino]"),
        (ImportError("libtbb.so.12: no such file"), "does not load (libtbb.so.12"),
    ],
)
def test_a_missing_package_is_passed_over_with_the_reason(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: ImportError, reason: str
) -> None:
    def fails(name: str) -> None:
        raise error

    monkeypatch.setattr(module, "import_module", fails)
    selection = open_engine(bundle)
    assert selection.passed_over[-1].startswith("openvino passed over: ")
    assert reason in selection.passed_over[-1]
    with pytest.raises(EngineUnavailableError, match="engine openvino: openvino"):
        open_engine(bundle, "openvino")


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """OpenVINO's import alone would send an event and leave an identity in the home folder."""
    code = (
        "import sys; from engines.openvino import import_openvino; import_openvino().Core(); "
        "sys.exit(any(name.startswith('openvino_telemetry') for name in sys.modules))"
    )
    env = {k: v for k, v in os.environ.items() if k != "CI"} | {"HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=False)
    assert ran.returncode == 0
    assert list(tmp_path.iterdir()) == []
