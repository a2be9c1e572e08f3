"""Bound memory on the stand-in GPU, under the rules of CUDA, and on a real one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from emfast.runtime import open_runtime, segmenter_shapes
from engines.bound import SHAPES, BoundEngine
from engines.bundle import Bundle, open_bundle
from engines.device import DeviceEngine
from engines.engine import Engine, EngineUnavailableError
from engines.errors import UserError
from engines.onnxruntime import import_onnxruntime
from tests.bundles import write_segmenter_bundle
from tests.fake_gpu import FakeGpu

RNG = np.random.default_rng(0)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(write_segmenter_bundle(tmp_path / "bundle", classes=2))


@pytest.fixture
def engine(bundle: Bundle, fake_gpu: FakeGpu) -> Iterator[Engine]:
    shapes = segmenter_shapes(bundle.manifest, 512)
    with open_runtime(bundle, shapes, "tensorrt-rtx", "fp32").engine as opened:
        yield opened


def bind(engine: Engine, bundle: Bundle) -> BoundEngine:
    assert isinstance(engine, DeviceEngine)
    return BoundEngine(engine, bundle.manifest.inputs, bundle.manifest.outputs)


def image(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def test_results_are_those_of_the_engine_and_runs_are_replayed(
    engine: Engine, bundle: Bundle, fake_gpu: FakeGpu
) -> None:
    before = fake_gpu.cuda.captured
    with bind(engine, bundle) as bound:
        for number in range(5):
            for shape in ((1, 1, 32, 48), (2, 1, 64, 32)):
                x = image(*shape)
                result = bound.run({"x": x})["probability"]
                assert result.shape == (shape[0], 2, *shape[2:])
                np.testing.assert_array_equal(result, engine.run({"x": x})["probability"])
                if number == 0:
                    first = result
        launches = fake_gpu.cuda.launches
        bound.run({"x": image(1, 1, 32, 48)})
        assert fake_gpu.cuda.launches == launches + 1
        assert bound.info == engine.info
        first[:] = 0  # the caller may overwrite what it got
        assert bound.run({"x": x})["probability"].any()
    assert fake_gpu.cuda.captured > before


def test_what_cannot_be_captured_runs_all_the_same(
    bundle: Bundle, fake_gpu: FakeGpu, engine: Engine
) -> None:
    fake_gpu.capturable = False
    before = fake_gpu.cuda.captured
    with bind(engine, bundle) as bound:
        x = image(1, 1, 32, 48)
        results = [bound.run({"x": x})["probability"] for _ in range(4)]
    assert fake_gpu.cuda.captured == before
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_memory_is_bounded_and_given_back(
    engine: Engine, bundle: Bundle, fake_gpu: FakeGpu
) -> None:
    used = fake_gpu.cuda.used
    pinned = len(fake_gpu.cuda.host)
    with bind(engine, bundle) as bound:
        for side in range(16, 16 * (SHAPES + 4), 16):
            bound.run({"x": image(1, 1, side, side)})
        assert len(fake_gpu.cuda.host) == pinned + 2 * SHAPES
        assert fake_gpu.cuda.used > used
    assert fake_gpu.cuda.used == used and len(fake_gpu.cuda.host) == pinned


def test_callers_take_turns(engine: Engine, bundle: Bundle) -> None:
    arrays = [image(1, 1, 32, 32) for _ in range(4)]
    expected = [engine.run({"x": x})["probability"] for x in arrays]
    with bind(engine, bundle) as bound, ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            results = pool.map(lambda x: bound.run({"x": x})["probability"], arrays)
            for result, wanted in zip(results, expected, strict=True):
                np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("x", [np.zeros((1, 1, 32, 32)), np.zeros((1, 32, 32), np.float32)])
def test_other_arrays_are_refused(engine: Engine, bundle: Bundle, x: np.ndarray) -> None:
    with bind(engine, bundle) as bound, pytest.raises(UserError, match=r"x is float.*; expected"):
        bound.run({"x": x})


def test_shapes_that_the_engine_does_not_take_are_refused_and_leave_nothing(
    engine: Engine, bundle: Bundle, fake_gpu: FakeGpu
) -> None:
    used = fake_gpu.cuda.used
    with bind(engine, bundle) as bound:
        with pytest.raises(UserError):
            bound.run({"x": image(1, 1, 1024, 32)})
        assert fake_gpu.cuda.used == used
        bound.run({"x": image(1, 1, 32, 32)})


@pytest.mark.gpu
def test_a_tile_takes_less_than_a_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    """Median of batch 1 and 256 x 256, with the copies there and back."""
    try:
        if "CUDAExecutionProvider" not in import_onnxruntime().get_available_providers():
            pytest.skip("this onnxruntime was built without CUDA")
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    bundle = open_bundle("epfl-segmenter")
    x = image(1, 1, 256, 256)
    shapes = segmenter_shapes(bundle.manifest, 256, (256, 256))
    with open_runtime(bundle, shapes, "onnxruntime-cuda", "fp16").engine as opened:
        expected = opened.run({"x": x})["probability"]
        with bind(opened, bundle) as bound:
            for _ in range(20):
                result = bound.run({"x": x})["probability"]
            times = []
            for _ in range(500):
                start = time.perf_counter()
                bound.run({"x": x})
                times.append(time.perf_counter() - start)
    np.testing.assert_allclose(result, expected, atol=1e-3)
    p50, p99 = np.percentile(times, [50, 99])
    print(f"p50 {1e3 * p50:.3f} ms, p99 {1e3 * p99:.3f} ms")
    assert p50 < 1e-3
