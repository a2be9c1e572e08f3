"""The runner of TensorRT engines on the stand-in GPU: memory, graphs, batches and callers."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
import pytest

from engines.bundle import Bundle, open_bundle
from engines.cuda import CudaError, DeviceBuffer, OutOfDeviceMemoryError, PinnedBuffer, Stream
from engines.engine import EngineUnavailableError
from engines.errors import UserError
from engines.onnxruntime import OnnxRuntimeEngine
from engines.plan import Profile, Range
from engines.tensorrt import FLAVOURS, TensorRTEngine, import_tensorrt
from tests.bundles import write_denoiser_bundle, write_segmenter_bundle

pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
from tests.fake_gpu import INVALID, FakeGpu, Source

PROFILE = Profile(Range(1, 2, 4), Range(16, 32, 64), Range(16, 32, 64))
# Bytes of device memory for one 32 x 32 image: input and output, float32, and the scratch.
IMAGE = 32 * 32 * 4
ONE_IMAGE = 2 * IMAGE + 3 * IMAGE


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(write_segmenter_bundle(tmp_path / "segmenter"))


def open_rtx(
    gpu: FakeGpu, bundle: Bundle, profile: Profile = PROFILE, **options: object
) -> TensorRTEngine:
    """An engine whose plan the stand-in knows; its contents do not matter here."""
    manifest, plan = bundle.manifest, b"plan"
    source = Source(bundle.graph("fp32"), manifest.inputs, manifest.outputs, profile)
    gpu.built[hashlib.sha256(plan).hexdigest()] = source
    return TensorRTEngine(
        plan, "tensorrt-rtx", "fp32", manifest.inputs, manifest.outputs, **options
    )


def images(batch: int, height: int = 32, width: int = 32) -> np.ndarray:
    rng = np.random.default_rng(batch)
    return rng.standard_normal((batch, 1, height, width), dtype=np.float32)


def expected(bundle: Bundle, x: np.ndarray) -> np.ndarray:
    with OnnxRuntimeEngine(bundle.graph("fp32"), "onnxruntime-cpu", "fp32", 1) as engine:
        return engine.run({"x": x})["probability"]


def test_it_gives_what_the_graph_gives(fake_gpu: FakeGpu, bundle: Bundle) -> None:
    with open_rtx(fake_gpu, bundle) as engine:
        assert engine.info.engine == "tensorrt-rtx"
        assert engine.info.device == "NVIDIA Stand-in (CUDA device 0)"
        assert engine.info.version.startswith("TensorRT-RTX 1.")
        for batch, height in ((1, 32), (3, 64), (4, 16), (1, 32)):
            x = images(batch, height)
            result = engine.run({"x": x})["probability"]
            np.testing.assert_array_equal(result, expected(bundle, x))
            result[:] = 0  # the caller's own: the next run must not see it


def test_all_inputs_are_bound(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    bundle = open_bundle(write_denoiser_bundle(tmp_path / "denoiser"))
    inputs = {"x": np.ones((2, 2, 32, 32), np.float32), "timestep": np.zeros(2, np.float32)}
    with open_rtx(fake_gpu, bundle) as engine:
        result = engine.run(inputs)["prediction"]
    with OnnxRuntimeEngine(bundle.graph("fp32"), "onnxruntime-cpu", "fp32", 1) as reference:
        np.testing.assert_array_equal(result, reference.run(inputs)["prediction"])


def test_shapes_that_repeat_run_as_a_graph(fake_gpu: FakeGpu, bundle: Bundle) -> None:
    with open_rtx(fake_gpu, bundle) as engine:
        for run in range(5):
            x = images(2) + run
            np.testing.assert_array_equal(engine.run({"x": x})["probability"], expected(bundle, x))
        assert fake_gpu.cuda.launches == 3  # the first two runs warm up
        engine.run({"x": images(1)})
        engine.run({"x": images(2)})
        assert fake_gpu.cuda.launches == 4  # another shape between does not cost the graph


def test_shapes_that_alternate_get_a_graph_each(fake_gpu: FakeGpu, bundle: Bundle) -> None:
    with open_rtx(fake_gpu, bundle) as engine:
        for _ in range(4):
            for batch in (4, 1):
                x = images(batch)
                result = engine.run({"x": x})["probability"]
                np.testing.assert_array_equal(result, expected(bundle, x))
        assert fake_gpu.cuda.launches == 4


def test_graphs_are_dropped_when_memory_moves(fake_gpu: FakeGpu, bundle: Bundle) -> None:
    with open_rtx(fake_gpu, bundle) as engine:
        for x in (images(1), images(1), images(1), images(4), *[images(1)] * 3):
            np.testing.assert_array_equal(engine.run({"x": x})["probability"], expected(bundle, x))
        assert fake_gpu.cuda.launches == 2


def test_graphs_are_limited(
    fake_gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.tensorrt.context.KINDS", 2)
    with open_rtx(fake_gpu, bundle) as engine:
        for size in (64, 48, 32, 16):
            for _ in range(3):
                engine.run({"x": images(1, size)})
        assert len(fake_gpu.cuda.executables) == 2


def test_what_cannot_be_captured_runs_without_a_graph(
    fake_gpu: FakeGpu,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake_gpu.capturable = False
    with open_rtx(fake_gpu, bundle) as engine:
        for _ in range(4):
            engine.run({"x": images(1)})
        assert fake_gpu.cuda.launches == 0
    fake_gpu.capturable = True
    monkeypatch.setattr(fake_gpu.cuda, "cudaGraphInstantiate", lambda *_: (INVALID, None))
    with open_rtx(fake_gpu, bundle) as engine:
        for _ in range(4):
            x = images(1)
            result = engine.run({"x": x})["probability"]
            np.testing.assert_array_equal(result, expected(bundle, x))
    assert not fake_gpu.cuda.graphs
    assert caplog.text.count("runs without CUDA graphs (cudaGraphInstantiate failed") == 1


def test_what_tensorrt_does_not_let_be_captured_is_told_once(
    fake_gpu: FakeGpu, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    fake_gpu.capturable = False
    with open_rtx(fake_gpu, bundle) as engine:
        for _ in range(4):
            engine.run({"x": images(1)})
    assert caplog.text.count("runs without CUDA graphs (TensorRT-RTX does not let its run") == 1


def test_a_size_that_tensorrt_cannot_tell(
    fake_gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = "tests.fake_gpu.FakeContext.update_device_memory_size_for_shapes"
    monkeypatch.setattr(context, lambda self: 0)
    with (
        open_rtx(fake_gpu, bundle) as engine,
        pytest.raises(UserError, match="cannot tell the memory that these shapes need"),
    ):
        engine.run({"x": images(1)})


def test_memory_is_taken_for_what_runs_and_given_back(fake_gpu: FakeGpu, bundle: Bundle) -> None:
    with open_rtx(fake_gpu, bundle) as engine:
        assert fake_gpu.cuda.used == 0
        engine.run({"x": images(1)})
        assert fake_gpu.cuda.used == ONE_IMAGE
        engine.run({"x": images(4)})
        assert fake_gpu.cuda.used == 4 * ONE_IMAGE
        engine.run({"x": images(2)})
        assert fake_gpu.cuda.used == 4 * ONE_IMAGE
        assert engine.memory == len(b"plan") + 4 * ONE_IMAGE
    cuda = fake_gpu.cuda
    assert not (cuda.device or cuda.host or cuda.queues or cuda.graphs or cuda.executables)


def test_a_batch_above_the_profile_runs_in_parts(fake_gpu: FakeGpu, bundle: Bundle) -> None:
    x = images(11)
    with open_rtx(fake_gpu, bundle) as engine:
        np.testing.assert_array_equal(engine.run({"x": x})["probability"], expected(bundle, x))
        assert fake_gpu.cuda.used == 4 * ONE_IMAGE


def test_a_batch_below_the_profile_is_filled_up(fake_gpu: FakeGpu, bundle: Bundle) -> None:
    x = images(7)
    with open_rtx(fake_gpu, bundle, Profile.fixed(4, 32, 32)) as engine:
        np.testing.assert_array_equal(engine.run({"x": x})["probability"], expected(bundle, x))


def test_out_of_memory_lowers_the_batch(
    fake_gpu: FakeGpu, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    fake_gpu.cuda.memory = 2 * ONE_IMAGE + IMAGE
    x = images(4)
    with open_rtx(fake_gpu, bundle) as engine:
        np.testing.assert_array_equal(engine.run({"x": x})["probability"], expected(bundle, x))
        assert "no memory for a batch of 4; going on with batches of 2" in caplog.text
        caplog.clear()
        np.testing.assert_array_equal(engine.run({"x": x})["probability"], expected(bundle, x))
        assert not caplog.text


def test_not_even_one_image_fits(fake_gpu: FakeGpu, bundle: Bundle) -> None:
    fake_gpu.cuda.memory = ONE_IMAGE - 1
    with (
        open_rtx(fake_gpu, bundle) as engine,
        pytest.raises(UserError, match=r"no memory for a batch of 1 \(0 MB are free"),
    ):
        engine.run({"x": images(4)})
    assert fake_gpu.cuda.used == 0 and not fake_gpu.cuda.host


def test_callers_run_side_by_side(fake_gpu: FakeGpu, bundle: Bundle) -> None:
    """Two at once on two contexts; a third one waits. Each gets its own numbers."""
    arrays = [images(1) + i for i in range(8)]
    wanted = [expected(bundle, x) for x in arrays]
    results: dict[int, np.ndarray] = {}
    with open_rtx(fake_gpu, bundle, callers=2) as engine:
        start = threading.Barrier(len(arrays))

        def work(i: int) -> None:
            start.wait()
            for _ in range(5):
                results[i] = engine.run({"x": arrays[i]})["probability"]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(arrays))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert fake_gpu.cuda.used in (ONE_IMAGE, 2 * ONE_IMAGE)
    for i, value in enumerate(wanted):
        np.testing.assert_array_equal(results[i], value)
    assert fake_gpu.cuda.used == 0


@pytest.mark.parametrize("shape", [(1, 1, 80, 32), (1, 1, 32, 8), (1, 2, 32, 32)])
def test_other_sizes_are_refused(fake_gpu: FakeGpu, bundle: Bundle, shape: tuple[int, ...]) -> None:
    with (
        open_rtx(fake_gpu, bundle) as engine,
        pytest.raises(UserError, match=r"built for 1 x 1 x 16 x 16 to 4 x 1 x 64 x 64"),
    ):
        engine.run({"x": np.zeros(shape, np.float32)})


def test_a_plan_that_tensorrt_refuses(fake_gpu: FakeGpu, bundle: Bundle) -> None:
    manifest = bundle.manifest
    with pytest.raises(UserError, match=r"refuses the engine \(Serialization assertion"):
        TensorRTEngine(b"alien", "tensorrt-rtx", "fp32", manifest.inputs, manifest.outputs)


def test_an_engine_of_another_network(fake_gpu: FakeGpu, bundle: Bundle) -> None:
    open_rtx(fake_gpu, bundle).close()
    manifest = bundle.manifest
    with pytest.raises(UserError, match=r"the engine has the tensors .*, but the bundle has"):
        TensorRTEngine(b"plan", "tensorrt-rtx", "fp32", manifest.inputs, manifest.inputs)


def test_a_run_that_fails_tells_why(fake_gpu: FakeGpu, bundle: Bundle) -> None:
    fake_gpu.failing = True
    with (
        open_rtx(fake_gpu, bundle) as engine,
        pytest.raises(UserError, match=r"cannot run the engine \(Error Code 3: API Usage"),
    ):
        engine.run({"x": images(1)})


def test_compiled_kernels_are_kept(fake_gpu: FakeGpu, bundle: Bundle, tmp_path: Path) -> None:
    kernels = tmp_path / "a.kernels"
    open_rtx(fake_gpu, bundle, kernels=kernels).close()
    assert kernels.read_bytes() == b"kernels"
    written = kernels.stat().st_mtime_ns
    open_rtx(fake_gpu, bundle, kernels=kernels).close()
    assert kernels.stat().st_mtime_ns == written
    kernels.write_bytes(b"of another driver")
    open_rtx(fake_gpu, bundle, kernels=kernels).close()
    assert kernels.read_bytes() == b"kernels"


def test_kernels_that_cannot_be_kept(
    fake_gpu: FakeGpu, bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_rtx(fake_gpu, bundle, kernels=tmp_path / "missing" / "a.kernels").close()
    assert "compiled kernels are not kept" in caplog.text


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_missing_package_names_its_extra(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("engines.tensorrt.library.import_module", without)
    with pytest.raises(EngineUnavailableError, match=r"is not installed \(pip install 'emfast\["):
        import_tensorrt(flavour)


def test_a_package_without_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr("engines.tensorrt.library.import_module", broken)
    with pytest.raises(EngineUnavailableError, match=r"does not load \(libnvinfer.so.11"):
        import_tensorrt("tensorrt")


def test_cuda_tells_which_call_failed(fake_gpu: FakeGpu) -> None:
    with pytest.raises(OutOfDeviceMemoryError, match="cudaMalloc failed: cudaErrorMemoryAlloc"):
        DeviceBuffer(fake_gpu.cuda.memory + 1)
    fake_gpu.cuda.cudaMallocHost = lambda size: (  # type: ignore[method-assign]
        fake_gpu.cuda.cudaError_t.cudaErrorMemoryAllocation,
        None,
    )
    with pytest.raises(CudaError, match="the host has no memory to pin for 4 bytes"):
        PinnedBuffer(4)
    del fake_gpu.cuda.cudaMallocHost
    buffer, pinned, stream = DeviceBuffer(4), PinnedBuffer(4), Stream()
    with pytest.raises(CudaError, match="cudaMemcpyAsync failed: cudaErrorInvalidValue"):
        stream.copy_to_device(buffer, pinned, 5)


def test_without_a_driver_cuda_says_so() -> None:
    from engines.cuda import open_device
    from engines.gpu import NoGpuError, gpus

    try:
        gpus()
    except NoGpuError:
        with pytest.raises(EngineUnavailableError, match="cudaSetDevice failed|not installed"):
            open_device()
    else:
        pytest.skip("this machine has a GPU")
