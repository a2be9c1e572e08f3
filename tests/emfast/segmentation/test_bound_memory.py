"""A segmenter on onnxruntime's CUDA provider: bound memory, on the stand-in for a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from emfast.segmentation.segmenter import Segmenter
from engines.bound import SHAPES, BoundWherePossible
from engines.cuda import Stream
from engines.device import DeviceTensor
from engines.engine import Array, EngineInfo, EngineUnavailableError
from engines.onnxruntime import OnnxRuntimeCudaEngine
from tests.bundles import write_segmenter_bundle
from tests.fake_gpu import FakeCuda, FakeGpu

RNG = np.random.default_rng(0)


class StandIn(OnnxRuntimeCudaEngine):
    """The CPU's session under the name of CUDA's, bound to the memory of the stand-in."""

    cuda: FakeCuda
    refusal = ""

    def __init__(self, graph: Path, name: str, precision: str, threads: int | None = None) -> None:
        super().__init__(graph, "onnxruntime-cpu", precision, threads)
        self.info = EngineInfo(name, precision, "CUDA device 0", self.info.version)
        self.runs: list[tuple[int, ...]] = []
        self.bindings: list[StandInBinding] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.runs.append(inputs["x"].shape)
        return super().run(inputs)

    def bind(  # type: ignore[override]
        self, tensors: Mapping[str, DeviceTensor], stream: Stream
    ) -> StandInBinding:
        if self.refusal:
            raise EngineUnavailableError(self.refusal)
        self.bindings.append(StandInBinding(self._session, self.cuda, tensors, stream))
        return self.bindings[-1]


class StandInBinding:
    capturable, replays = False, True

    def __init__(
        self,
        session: ort.InferenceSession,
        cuda: FakeCuda,
        tensors: Mapping[str, DeviceTensor],
        stream: Stream,
    ) -> None:
        self._session, self._cuda, self._stream = session, cuda, stream
        self._x, self._probability = tensors["x"], tensors["probability"]
        self.closed = False

    def enqueue(self) -> None:
        def run() -> None:
            raw = self._cuda.array(self._x.address)
            x = raw.view(self._x.dtype).reshape(self._x.shape)
            (result,) = self._session.run(["probability"], {"x": x})
            self._cuda.array(self._probability.address)[:] = result.reshape(-1).view(np.uint8)

        self._cuda.push(self._stream.handle, run)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_segmenter_bundle(tmp_path / "bundle")


@pytest.fixture
def cuda(fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    monkeypatch.setattr(StandIn, "cuda", fake_gpu.cuda, raising=False)
    monkeypatch.setattr("engines.selection.OnnxRuntimeCudaEngine", StandIn)
    return fake_gpu.cuda


def on_cuda(folder: Path) -> Segmenter:
    return Segmenter.open(folder, "onnxruntime-cuda")


def slices(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def expected(folder: Path, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    with Segmenter.open(folder, "onnxruntime-cpu", threads=1) as segmenter:
        return [segmenter.probability(image) for image in images]


def stand_in(segmenter: Segmenter) -> StandIn:
    engine = segmenter._engine
    assert isinstance(engine, BoundWherePossible)
    assert isinstance(engine._engine, StandIn)
    return engine._engine


def test_slices_of_one_size_take_two_copies_each(folder: Path, cuda: FakeCuda) -> None:
    images = [slices(1, 48, 64) for _ in range(5)]
    with on_cuda(folder) as segmenter:
        assert segmenter.info.engine == "onnxruntime-cuda"
        copies = []
        for image, wanted in zip(images, expected(folder, images), strict=True):
            before = cuda.copies
            np.testing.assert_array_equal(segmenter.probability(image), wanted)
            copies.append(cuda.copies - before)
        # The first run is not worth a binding; then one copy there and one back.
        assert copies == [0, 2, 2, 2, 2]
        engine = stand_in(segmenter)
        assert engine.runs == [(1, 1, 48, 64)] and len(engine.bindings) == 1
    assert cuda.used == 0 and cuda.host == {} and engine.bindings[0].closed


def test_batches_and_their_rest_are_bound_apart(folder: Path, cuda: FakeCuda) -> None:
    images = [slices(6, 32, 32), slices(6, 32, 32)]
    with on_cuda(folder) as segmenter:
        for image, wanted in zip(images, expected(folder, images), strict=True):
            np.testing.assert_array_equal(segmenter.probability(image), wanted)
        engine = stand_in(segmenter)
        assert engine.runs == [(4, 1, 32, 32), (2, 1, 32, 32)]
        assert cuda.copies == 4


def test_more_sizes_than_are_kept_run_all_the_same(folder: Path, cuda: FakeCuda) -> None:
    images = [slices(1, side, 16) for side in range(16, 16 * (SHAPES + 3), 16)] * 3
    with on_cuda(folder) as segmenter:
        for image, wanted in zip(images, expected(folder, images), strict=True):
            np.testing.assert_array_equal(segmenter.probability(image), wanted)
        engine = stand_in(segmenter)
        assert len(engine.bindings) == SHAPES
        assert not any(binding.closed for binding in engine.bindings)
        assert cuda.copies == 2 * 2 * SHAPES


def test_a_refused_binding_is_told_once(
    folder: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(StandIn, "refusal", "onnxruntime cannot bind it to the device")
    images = [slices(1, side, 16) for side in (16, 32)] * 3
    with on_cuda(folder) as segmenter:
        for image, wanted in zip(images, expected(folder, images), strict=True):
            np.testing.assert_array_equal(segmenter.probability(image), wanted)
    assert caplog.text.count("runs without bound memory (onnxruntime cannot bind it") == 1
    assert cuda.copies == 0 and cuda.used == 0 and cuda.host == {}


def test_no_memory_for_a_size_leaves_the_others_bound(folder: Path, cuda: FakeCuda) -> None:
    small, large = slices(1, 32, 32), slices(1, 128, 128)
    cuda.memory = 2 * 4 * 32 * 32
    with on_cuda(folder) as segmenter:
        for image in (small, large) * 3:
            (wanted,) = expected(folder, [image])
            np.testing.assert_array_equal(segmenter.probability(image), wanted)
        assert stand_in(segmenter).runs.count((1, 1, 128, 128)) == 3
        assert cuda.copies == 2 * 2


def test_without_cudas_bindings_it_runs_as_it_is(
    folder: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise EngineUnavailableError("package cuda-bindings is not installed")

    monkeypatch.setattr("engines.cuda.import_cuda", missing)
    image = slices(1, 32, 32)
    with on_cuda(folder) as segmenter:
        assert isinstance(segmenter._engine, StandIn)
        (wanted,) = expected(folder, [image])
        np.testing.assert_array_equal(segmenter.probability(image), wanted)
    assert caplog.text.count("runs without bound memory (package cuda-bindings is not") == 1
