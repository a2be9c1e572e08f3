from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest

from emfast.diffusion.noise import normal_noise
from emfast.diffusion.samplers import SAMPLERS, Trajectory, make_sampler
from emfast.diffusion.sampling import sample
from emfast.diffusion.schedule import cosine_schedule

Array = npt.NDArray[np.float32]
SHAPE = (2, 16, 16)


def denoise(x: Array, timestep: Array) -> Array:
    """A network that looks at x and at the timestep."""
    prediction: Array = (
        np.roll(x, 1, axis=-1) * np.float32(0.7) + timestep[:, None, None, None] / 999
    )
    return prediction


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_loop_takes_every_step_with_its_noise(name: str) -> None:
    sampler = make_sampler(name, cosine_schedule(60), 20, 0.5 if name == "ddim" else 0.0)
    indices = [5, 0, 2**40]
    seen = []
    got = sample(denoise, sampler, 3, indices, SHAPE, lambda: seen.append(0))
    assert len(seen) == 20

    x = normal_noise(3, indices, 60, SHAPE)
    trajectory = Trajectory(sampler, x.shape)  # type: ignore[arg-type]
    for step in sampler.steps:
        prediction = denoise(x, np.full(3, step.timestep, dtype=np.float32))
        trajectory.step(step, x, prediction, normal_noise(3, indices, step.timestep, SHAPE))
    np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    sampler = make_sampler(name, cosine_schedule(60), 7)
    together = sample(denoise, sampler, 0, [4, 5, 6], SHAPE)
    for row, index in zip(together, (4, 5, 6), strict=True):
        np.testing.assert_array_equal(sample(denoise, sampler, 0, [index], SHAPE)[0], row)


def test_samplers_differ() -> None:
    images = [
        sample(denoise, make_sampler(name, cosine_schedule(60), 20), 0, [0], SHAPE)
        for name in SAMPLERS
    ]
    assert all(np.abs(images[i] - images[i - 1]).mean() > 1e-3 for i in range(3))


@pytest.mark.parametrize("name", SAMPLERS)
def test_memory_does_not_grow_with_steps(name: str) -> None:
    peaks = []
    for steps in (20, 400):
        sampler = make_sampler(name, cosine_schedule(700), steps)
        tracemalloc.start()
        sample(denoise, sampler, 0, range(4), (2, 64, 64))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The peak is higher where noise and update happen to hold their scratch at once.
    assert peaks[1] < 1.5 * peaks[0]


def test_a_network_that_fails_leaves_no_thread() -> None:
    def fails(x: Array, timestep: Array) -> Array:
        raise RuntimeError("lost the GPU")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="lost the GPU"):
        sample(fails, make_sampler("ddpm", cosine_schedule(10)), 0, [0], SHAPE)
    assert threading.active_count() == before
