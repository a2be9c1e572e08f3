"""On a real GPU: CUDA's memory and graphs, and every engine that runs here on the shipped bundles.

``emfast doctor --self-test`` does the same for people.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from emfast.runtime import denoiser_shapes, open_runtime, segmenter_shapes
from emfast.verification import engine_checks
from engines.bundle import open_bundle
from engines.cache import EngineCache
from engines.cuda import DeviceBuffer, OutOfDeviceMemoryError, PinnedBuffer, Stream, open_device
from engines.engine import Engine, EngineUnavailableError
from engines.gpu import gpus
from engines.onnxruntime import import_onnxruntime
from engines.tensorrt import FLAVOURS
from engines.tensorrt.library import check_device
from export.verify import float_run, relative_errors, verify

pytestmark = pytest.mark.gpu
ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests here: TensorRT takes minutes for an engine."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(autouse=True)
def _shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMFAST_CACHE", str(cache))


def open_here(model: str, engine: str, precision: str = "fp16", batch: int = 2) -> Engine:
    """A shipped bundle on an engine. Skipped where the engine is not installed or not made for
    this GPU; what goes wrong after that fails the test."""
    bundle = open_bundle(model)
    shapes = (
        denoiser_shapes(batch, (256, 256))
        if bundle.manifest.kind == "denoiser"
        else segmenter_shapes(bundle.manifest, 1024)
    )
    try:
        if engine in FLAVOURS:
            check_device(engine)
        elif "CUDAExecutionProvider" not in import_onnxruntime().get_available_providers():
            pytest.skip("this onnxruntime was built without CUDA")
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    return open_runtime(bundle, shapes, engine, precision).engine


def test_memory_goes_there_and_back_and_graphs_repeat_it() -> None:
    device = open_device()
    assert device.memory > 0 and "." in device.compute_capability
    assert any(device.compute_capability == "{}.{}".format(*g.compute_capability) for g in gpus())
    source, target, memory, stream = PinnedBuffer(64), PinnedBuffer(64), DeviceBuffer(64), Stream()

    def copy() -> None:
        stream.copy_to_device(memory, source, 64)
        stream.copy_to_host(target, memory, 64)

    source.array[:] = 7
    copy()
    stream.wait()
    assert (target.array == 7).all()
    graph = stream.capture(copy)
    for value in (8, 9):
        source.array[:] = value
        graph.launch()
        stream.wait()
        assert (target.array == value).all()
    graph.close()
    stream.close()
    for buffer in (source, target, memory):
        buffer.close()


def test_too_much_memory_is_refused_and_nothing_is_broken() -> None:
    with pytest.raises(OutOfDeviceMemoryError):
        DeviceBuffer(open_device().memory * 2)
    DeviceBuffer(64).close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("model", ["epfl-segmenter", "epfl-denoiser"])
def test_shipped_bundles_agree_with_the_cpu(engine: str, precision: str, model: str) -> None:
    bundle = open_bundle(model)
    manifest = bundle.manifest
    shapes = denoiser_shapes(1, (256, 256))
    with (
        open_here(model, engine, precision) as tested,
        open_runtime(bundle, shapes, "onnxruntime-cpu", "fp32").engine as reference,
    ):
        assert tested.info.engine == engine
        runs = {precision: float_run(tested, manifest.inputs)}
        verify(float_run(reference, manifest.inputs), runs, engine_checks(manifest)[0], "the CPU")


@pytest.mark.parametrize("engine", ENGINES)
def test_repeated_runs_give_the_same_numbers(engine: str) -> None:
    """The first run, the second, and those replayed from a graph."""
    x = np.random.default_rng(0).standard_normal((2, 2, 256, 256), dtype=np.float32)
    inputs = {"x": x, "timestep": np.full(2, 300, np.float32)}
    with open_here("epfl-denoiser", engine) as tested:
        results = [tested.run(inputs)["prediction"] for _ in range(5)]
        other = tested.run({"x": x[:1], "timestep": np.full(1, 300, np.float32)})["prediction"]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    assert relative_errors(results[0][:1], other)[1] < 0.02


@pytest.mark.parametrize("engine", ENGINES)
def test_shapes_may_alternate(engine: str) -> None:
    """Each shape keeps its numbers while others run between, with and without graphs."""
    rng = np.random.default_rng(0)
    arrays = {
        size: rng.standard_normal((1, 1, *size), dtype=np.float32)
        for size in ((256, 256), (512, 256), (256, 1024))
    }
    with open_here("epfl-segmenter", engine) as tested:
        first = {size: tested.run({"x": x})["probability"] for size, x in arrays.items()}
        for _ in range(4):
            for size, x in arrays.items():
                result = tested.run({"x": x})["probability"]
                np.testing.assert_allclose(result, first[size], atol=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_callers_do_not_mix(engine: str) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 1, 256, 256), dtype=np.float32) for _ in range(4)]
    with open_here("epfl-segmenter", engine) as tested:
        alone = [tested.run({"x": x})["probability"] for x in arrays]

        def work(x: np.ndarray) -> list[np.ndarray]:
            return [tested.run({"x": x})["probability"] for _ in range(10)]

        with ThreadPoolExecutor(len(arrays)) as pool:
            results = list(pool.map(work, arrays))
    for expected, repeated in zip(alone, results, strict=True):
        for result in repeated:
            np.testing.assert_allclose(result, expected, atol=1e-3)


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_a_second_opening_finds_the_engine(engine: str) -> None:
    open_here("epfl-segmenter", engine).close()
    files = {entry.path: entry.path.stat().st_mtime_ns for entry in EngineCache().entries()}
    open_here("epfl-segmenter", engine).close()
    entries = EngineCache().entries()
    assert {entry.path: entry.path.stat().st_mtime_ns for entry in entries} == files
    assert all(entry.verifications for entry in entries)
