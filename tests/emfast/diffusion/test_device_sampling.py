"""The loop on the device, on the stand-in GPU: same images, and no host between the steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from emfast.benchmark.contestants import EmfastSampling
from emfast.diffusion.samplers import SAMPLERS
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Job, run_job
from engines.bundle import open_bundle
from engines.engine import EngineUnavailableError
from engines.errors import UserError
from engines.onnxruntime import OnnxRuntimeCudaEngine
from tests import host_kernel
from tests.bundles import write_denoiser_bundle

pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
from tests.fake_gpu import FakeGpu

RTX = "tensorrt-rtx"
SIZE = (32, 48)
STATE = 2 * 32 * 48 * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_denoiser_bundle(tmp_path / "denoiser", steps=700)


def draw_on_host(folder: Path, indices: list[int], steps: int, sampler: str, eta: float) -> object:
    with Generator.open(folder, "onnxruntime-cpu", threads=1) as generator:
        return generator.draw(indices, 3, steps, SIZE, sampler=sampler, eta=eta)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_it_draws_what_the_host_draws(fake_gpu: FakeGpu, folder: Path, sampler: str) -> None:
    indices, eta = [4, 0, 2**40], 0.5 if sampler == "ddim" else 0.0
    with Generator.open(folder, RTX, batch=3, size=SIZE) as generator:
        assert str(generator.prepare(3, SIZE)) == "on the device"
        drawn = generator.draw(indices, 3, 20, SIZE, sampler=sampler, eta=eta)
    expected = draw_on_host(folder, indices, 20, sampler, eta)
    for got, wanted in zip(drawn, expected, strict=True):  # type: ignore[call-overload]
        # A grey that lies between two levels may round to either.
        assert (got != wanted).mean() < 1e-3
        assert np.abs(got.astype(int) - wanted).max() <= 1


def test_all_steps_replay_one_graph_without_the_host(fake_gpu: FakeGpu, folder: Path) -> None:
    cuda, driver = fake_gpu.cuda, fake_gpu.driver
    seen: list[int] = []
    with Generator.open(folder, RTX, batch=2, size=SIZE) as generator:
        generator.prepare(2, SIZE)
        copies, captured, before = cuda.copies, cuda.captured, cuda.launches
        kernels = driver.launches
        generator.draw([0, 1], 0, 700, SIZE, lambda: seen.append(0))
        assert len(seen) == 700
        assert cuda.captured == captured + 1
        assert cuda.launches == before + 699  # the first step warms up
        assert driver.launches == kernels + 701  # the first noise, and one a step
        assert cuda.copies == copies + 2  # what the batch is, and its images
        # Another seed, sampler and number of steps need no other graph.
        generator.draw([7, 2], 5, 10, SIZE, sampler="dpm++")
        assert cuda.captured == captured + 1
        assert (cuda.launches, driver.launches) == (before + 709, kernels + 712)
        assert cuda.copies == copies + 4


def test_memory_is_given_back(fake_gpu: FakeGpu, folder: Path) -> None:
    cuda = fake_gpu.cuda
    with Generator.open(folder, RTX, batch=4, size=SIZE) as generator:
        for batch in (1, 4, 1):
            generator.draw(range(batch), 0, 3, SIZE)
            # x, prediction, x0 of the step before, and TensorRT's scratch of the stand-in.
            assert 6 * batch * STATE < cuda.used < 6 * batch * STATE + 32 * 720
    assert not (cuda.device or cuda.host or cuda.queues or cuda.graphs or cuda.executables)
    assert not (cuda.events or fake_gpu.driver.modules)


def test_a_refused_capture_is_told_and_the_loop_goes_on(
    fake_gpu: FakeGpu, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake_gpu.capturable = False
    with Generator.open(folder, RTX, batch=2, size=SIZE) as generator:
        images, _ = generator.draw([0, 1], 0, 6, SIZE)
        again, _ = generator.draw([0, 1], 0, 6, SIZE)
    np.testing.assert_array_equal(images, again)
    assert fake_gpu.cuda.launches == 0
    assert caplog.text.count("loop: without a CUDA graph (the runtime does not let") == 1


def test_without_a_compiler_the_host_takes_the_steps(
    fake_gpu: FakeGpu, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(source: str, compute_capability: str) -> bytes:
        raise EngineUnavailableError("package nvidia-cuda-nvrtc is not installed")

    monkeypatch.setattr("engines.kernels.compile_kernel", missing)
    with Generator.open(folder, RTX, batch=2, size=SIZE) as generator:
        told = str(generator.prepare(2, SIZE))
        images, _ = generator.draw([0, 1], 3, 6, SIZE)
        assert fake_gpu.driver.launches == 0
    assert told == "on the host (package nvidia-cuda-nvrtc is not installed)"
    expected = draw_on_host(folder, [0, 1], 6, "ddpm", 0.0)
    np.testing.assert_array_equal(images, expected[0])  # type: ignore[index]


def test_a_device_that_draws_other_noise_is_not_trusted(
    fake_gpu: FakeGpu, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One number in 12,288 that is off by a thousandth."""
    right = host_kernel.sampling_step

    def wrong(grid_x: int, grid_y: int, pointers: list[int], numbers: list[int]) -> None:
        right(grid_x, grid_y, pointers, numbers)
        fake_gpu.cuda.array(pointers[4]).view(np.float32)[-1] += 1e-3

    monkeypatch.setattr(host_kernel, "sampling_step", wrong)
    with Generator.open(folder, RTX, batch=4, size=SIZE) as generator:
        place = generator.prepare(4, SIZE)
        assert place.name == "host"
        assert "the device's noise differs from the host's by 0.001" in place.reason
        assert not (fake_gpu.cuda.device or fake_gpu.driver.modules)


def test_a_batch_that_does_not_fit_goes_to_the_host_in_parts(
    fake_gpu: FakeGpu, folder: Path
) -> None:
    with Generator.open(folder, RTX, batch=4, size=SIZE) as generator:
        fake_gpu.cuda.memory = fake_gpu.cuda.used + 13 * STATE
        assert generator.prepare(1, SIZE).name == "device"
        place = generator.prepare(4, SIZE)
        assert place.full and "on the host (cudaMalloc failed" in str(place)
        images, _ = generator.draw(range(4), 3, 6, SIZE)
    expected = draw_on_host(folder, [0, 1, 2, 3], 6, "ddpm", 0.0)
    np.testing.assert_array_equal(images, expected[0])  # type: ignore[index]


def test_a_batch_beyond_the_engine_goes_to_the_host(fake_gpu: FakeGpu, folder: Path) -> None:
    with Generator.open(folder, RTX, batch=2, size=SIZE) as generator:
        assert "a batch of 3 is not one of the 1 to 2" in str(generator.prepare(3, SIZE))


def test_an_interrupted_batch_leaves_nothing_behind(fake_gpu: FakeGpu, folder: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with Generator.open(folder, RTX, batch=2, size=SIZE) as generator:
        expected, _ = generator.draw([0, 1], 0, 50, SIZE)
        with pytest.raises(KeyboardInterrupt):
            generator.draw([2, 3], 0, 50, SIZE, interrupt)
        assert not fake_gpu.cuda.events
        images, _ = generator.draw([0, 1], 0, 50, SIZE)
    np.testing.assert_array_equal(images, expected)
    assert not (fake_gpu.cuda.device or fake_gpu.cuda.host)


def test_the_cpu_says_that_the_host_takes_the_steps(folder: Path) -> None:
    with Generator.open(folder, "onnxruntime-cpu", threads=1) as generator:
        told = str(generator.prepare(1, SIZE))
    assert told == "on the host (onnxruntime-cpu shares no device memory)"


def test_the_set_records_where_its_steps_were_taken(fake_gpu: FakeGpu, folder: Path) -> None:
    out = folder.parent / "set"
    with Generator.open(folder, RTX, batch=2, size=SIZE) as generator:
        run_job(Job(3, 0, 5, SIZE, 2, False), generator, out)
    assert json.loads((out / "job.json").read_text())["loop"] == "device"
    with Generator.open(folder, RTX, batch=2, size=SIZE) as generator:
        generator.engine.bind = refuse  # type: ignore[attr-defined]
        with pytest.raises(UserError, match="loop was device, is host"):
            run_job(Job(3, 0, 5, SIZE, 2, False), generator, out)


def refuse(*_: object) -> None:
    raise EngineUnavailableError("not today")


def test_the_network_is_timed_alone(fake_gpu: FakeGpu, folder: Path) -> None:
    with Generator.open(folder, RTX, batch=2, size=SIZE) as generator:
        generator.spec = replace(generator.spec, size=SIZE)
        expected, _ = generator.draw([0, 1], 0, 5)
        launches, kernels = fake_gpu.cuda.launches, fake_gpu.driver.launches
        assert generator.network_seconds(2, 7) > 0
        assert fake_gpu.cuda.launches == launches + 7
        assert fake_gpu.driver.launches == kernels
        images, _ = generator.draw([0, 1], 0, 5)
    np.testing.assert_array_equal(images, expected)


def test_the_benchmark_times_it_beside_the_network(fake_gpu: FakeGpu, folder: Path) -> None:
    contestant = EmfastSampling(str(folder), RTX, "fp32", 1, 1)
    assert contestant.description.endswith("loop on the device")
    before = fake_gpu.driver.launches
    times = contestant.run(45)
    assert fake_gpu.driver.launches == before + 46
    assert len(times.steps) == 45 and min(times.steps) > 0
    assert times.inside is not None and times.inside > 0


class BoundSession:
    """``InferenceSession`` on the stand-in's memory: what onnxruntime does with bound addresses.

    It enforces what its documentation asks for: a stream of the caller's, and device addresses.
    """

    def __init__(self, gpu: FakeGpu, graph: str, providers: list[Any], capturable: bool) -> None:
        provider, self.options = providers[0]
        assert provider == "CUDAExecutionProvider"
        if self.options["enable_cuda_graph"] == "1" and not capturable:
            raise RuntimeError("not all nodes have been partitioned to the CUDAExecutionProvider")
        self._gpu, self._stream = gpu, int(self.options["user_compute_stream"])
        self._session = onnxruntime.InferenceSession(graph)
        self._bound: dict[str, tuple[Any, ...]] = {}
        self.get_inputs = self._session.get_inputs

    def disable_fallback(self) -> None: ...

    def io_binding(self) -> BoundSession:
        return self

    def bind_input(self, name: str, kind: str, device: int, *rest: Any) -> None:
        assert (kind, device) == ("cuda", 0)
        self._bound[name] = rest

    bind_output = bind_input

    def run_with_iobinding(self, binding: object, options: Any) -> None:
        key = "disable_synchronize_execution_providers"
        assert options.get_run_config_entry(key) == "1"
        cuda = self._gpu.cuda
        # Its own graph would be launched into the capture, which ends the process.
        assert self._stream not in cuda.captures

        def run() -> None:
            arrays = {}
            for name, (dtype, shape, address) in self._bound.items():
                count = int(np.prod(shape)) * dtype.itemsize
                arrays[name] = cuda.array(address)[:count].view(dtype).reshape(shape)
            feeds = {node.name: arrays[node.name] for node in self.get_inputs()}
            (arrays["prediction"][...],) = self._session.run(["prediction"], feeds)

        cuda.push(self._stream, run)


@pytest.mark.parametrize("capturable", [True, False])
def test_onnxruntime_shares_the_stream(
    fake_gpu: FakeGpu,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capturable: bool,
) -> None:
    class Module:
        """onnxruntime, but for its sessions on CUDA."""

        def __getattr__(self, name: str) -> Any:
            return getattr(onnxruntime, name)

        def InferenceSession(  # noqa: N802
            self, graph: str, options: Any, providers: list[Any], enable_fallback: int
        ) -> BoundSession:
            # onnxruntime would else try again without the options that were refused.
            assert enable_fallback == 0
            return BoundSession(fake_gpu, graph, providers, capturable)

    expected = draw_on_host(folder, [4, 0, 9], 20, "ddpm", 0.0)
    bundle = open_bundle(folder)
    # A session on the CPU that answers as the one on CUDA would.
    engine = OnnxRuntimeCudaEngine(bundle.graph("fp32"), "onnxruntime-cpu", "fp32", 1)
    engine.info = replace(engine.info, engine="onnxruntime-cuda")
    monkeypatch.setattr("engines.onnxruntime.import_onnxruntime", Module)
    with Generator(bundle, engine) as generator:
        assert str(generator.prepare(3, SIZE)) == "on the device"
        for _ in range(2):
            images, _ = generator.draw([4, 0, 9], 3, 20, SIZE)
    assert np.abs(images.astype(int) - expected[0]).max() <= 1  # type: ignore[index]
    assert fake_gpu.driver.launches == 1 + 2 * 21  # the first checks the noise
    assert fake_gpu.cuda.captured == 0
    assert "loop: without" not in caplog.text
    assert ("runs without CUDA graphs (not all nodes" in caplog.text) is not capturable
    assert not (fake_gpu.cuda.device or fake_gpu.cuda.host or fake_gpu.cuda.queues)
