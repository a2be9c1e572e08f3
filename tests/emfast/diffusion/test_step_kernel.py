"""The kernel of the loop, compiled for the host and held against numpy."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from emfast.diffusion.device_sampling import RUN, table
from emfast.diffusion.noise import normal_noise
from emfast.diffusion.samplers import Sampler, Step, make_sampler
from emfast.diffusion.samplers.sampler import Array
from emfast.diffusion.sampling import sample
from emfast.diffusion.schedule import cosine_schedule, linear_schedule
from engines.engine import EngineUnavailableError
from engines.kernels import compile_kernel
from tests import host_kernel
from tests.emfast.diffusion.test_noise import KNOWN_ANSWERS

# 90 elements of 3 channels: the last block of Philox is not full, and the second half begins in
# the middle of a channel.
SHAPE = (3, 6, 5)
CLIP = np.array([[-0.8, -0.5, -0.3], [0.9, 0.5, 0.6]], dtype=np.float32)
# Four elements in a row are read in one access.
ALIGNED = (3, 6, 4)


class HostLoop:
    """The arrays that the kernel works on, and its launches; a batch as DeviceLoop tells it."""

    def __init__(
        self,
        sampler: Sampler,
        seed: int,
        indices: list[int],
        half: bool = False,
        grid: int = 3,
        image: tuple[int, int, int] = SHAPE,
    ) -> None:
        shape = (len(indices), *image)
        dtype = np.float16 if half else np.float32
        self.run = np.array([(seed, 0, 0)], dtype=RUN)
        self.rows = table(sampler)
        self.indices = np.array(indices, dtype=np.uint64)
        open_clip = np.repeat(np.float32([[-np.inf], [np.inf]]), image[0], axis=1)
        self.clip = (open_clip if sampler.clip is None else sampler.clip).copy()
        # What memory holds before the first step must not matter.
        self.x, self.previous = (np.full(shape, np.nan, np.float32) for _ in range(2))
        self.prediction = np.full(shape, np.nan, dtype)
        self.input = np.zeros(shape, np.float16) if half else self.x
        self.timestep = np.zeros(len(indices), dtype)
        self._numbers = (image[0], image[1] * image[2], 7 if half else 0)
        self._grid = (grid, len(indices))

    def launch(self) -> None:
        arrays = (
            *(self.run, self.rows, self.indices, self.clip, self.x, self.prediction),
            *(self.previous, self.input, self.timestep),
        )
        host_kernel.sampling_step(
            *self._grid, [host_kernel.address(a) for a in arrays], self._numbers
        )


def denoise(x: Array, timestep: Array) -> Array:
    prediction: Array = np.roll(x, 1, axis=-1) * np.float32(0.7) + timestep[
        :, None, None, None
    ] / np.float32(999)
    return prediction


def samplers(clip: Array | None = CLIP) -> list[Sampler]:
    made = []
    for schedule in (cosine_schedule(60, "sample"), cosine_schedule(60), linear_schedule(60)):
        made += [
            make_sampler("ddpm", schedule, None, clip=clip),
            make_sampler("ddpm", schedule, 13, variance="fixed_large", clip=clip),
            make_sampler("ddim", schedule, 13, clip=clip),
            make_sampler("ddim", schedule, 13, eta=0.7, clip=clip),
            make_sampler("dpm++", schedule, 13, clip=clip),
        ]
    return made


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, result: str) -> None:
    words = [[int(word, 16) for word in text.split()] for text in (counter, key, result)]
    assert host_kernel.philox(words[0], words[1]) == words[2]


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_noise_is_that_of_the_cpu(seed: int) -> None:
    """Of the start, and of steps whose coefficients leave nothing but the noise."""
    indices = [0, 5, 2**64 - 1]
    schedule = cosine_schedule(60)
    steps = [Step(t, 0.0, 0.0, 0.0, 0.0, deviation=1.0) for t in (59, 31, 0)]
    loop = HostLoop(Sampler(schedule, steps, None), seed, indices)
    for timestep in (60, 59, 31, 0):
        loop.launch()
        expected = normal_noise(seed, indices, timestep, SHAPE)
        np.testing.assert_allclose(loop.x, expected, atol=1e-5, rtol=0)
        loop.prediction[:] = 0


def test_a_million_numbers() -> None:
    """Also the rare ones."""
    schedule = cosine_schedule(60)
    indices = list(range(12000))
    loop = HostLoop(Sampler(schedule, [], None), 1, indices)
    loop.launch()
    expected = normal_noise(1, indices, 60, SHAPE)
    assert expected.size > 1e6 and np.abs(expected).max() > 4.5
    np.testing.assert_allclose(loop.x, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("image", [SHAPE, ALIGNED], ids=["odd", "aligned"])
@pytest.mark.parametrize("sampler", samplers() + samplers(None), ids=lambda s: type(s).__name__)
def test_trajectories_are_those_of_the_host(sampler: Sampler, image: tuple[int, int, int]) -> None:
    indices = [3, 0, 2**40]
    loop = HostLoop(sampler, 9, indices, image=image)
    loop.launch()
    for step in sampler.steps:
        assert (loop.timestep == step.timestep).all()
        loop.prediction[:] = denoise(loop.x, loop.timestep)
        loop.launch()
    expected = sample(denoise, sampler, 9, indices, image)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(loop.x, expected, atol=2e-5 * scale, rtol=0)
    assert loop.run["step"] == len(sampler.steps) + 1 and loop.run["finished"] == 0


@pytest.mark.parametrize("grid", [1, 2, 100])
def test_any_grid_gives_the_same(grid: int) -> None:
    sampler = samplers()[0]
    results = []
    for blocks in (grid, 3):
        loop = HostLoop(sampler, 9, [1, 2], grid=blocks)
        for _ in range(5):
            loop.launch()
            loop.prediction[:] = denoise(loop.x, loop.timestep)
        results.append(loop.x)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("image", [SHAPE, ALIGNED], ids=["odd", "aligned"])
def test_half_precision_is_cast_at_the_network_only(image: tuple[int, int, int]) -> None:
    sampler = samplers()[3]
    loop = HostLoop(sampler, 9, [0, 1], half=True, image=image)

    def half(x: Array, timestep: Array) -> Array:
        return denoise(x.astype(np.float16), timestep.astype(np.float16)).astype(np.float32)

    loop.launch()
    for _ in sampler.steps:
        np.testing.assert_array_equal(loop.input, loop.x.astype(np.float16))
        loop.prediction[:] = denoise(loop.input, loop.timestep)
        loop.launch()
    expected = sample(half, sampler, 9, [0, 1], image)
    np.testing.assert_allclose(loop.x, expected, atol=2e-3, rtol=0)


def test_what_is_not_a_number_stays_so() -> None:
    loop = HostLoop(samplers()[0], 0, [0])
    loop.launch()
    loop.prediction[:] = 0
    loop.prediction[0, 1, 2, 3] = np.nan
    loop.launch()
    assert np.isnan(loop.x).sum() == 1


@pytest.mark.skipif(find_spec("nvidia") is None, reason="needs NVRTC")
@pytest.mark.parametrize("compute_capability", ["7.5", "8.6", "9.0", "12.0"])
def test_it_compiles(compute_capability: str) -> None:
    try:
        cubin = compile_kernel(host_kernel.SOURCE.read_text(), compute_capability)
    except EngineUnavailableError as error:
        if "is not installed" in str(error):
            pytest.skip(str(error))
        raise
    assert cubin.startswith(b"\x7fELF") and b"sampling_step" in cubin


def test_what_does_not_compile_is_told() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    with pytest.raises(EngineUnavailableError, match="9.9"):
        compile_kernel(host_kernel.SOURCE.read_text(), "9.9")
    with pytest.raises(EngineUnavailableError, match="nonsense"):
        compile_kernel("nonsense", "8.6")
