"""The sampling loop: one loop for every engine and every sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from emfast.diffusion.noise import normal_noise
from emfast.diffusion.samplers import Sampler, Trajectory

Denoise = Callable[[npt.NDArray[np.float32], npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def sample(
    denoise: Denoise,
    sampler: Sampler,
    seed: int,
    indices: Sequence[int],
    shape: tuple[int, int, int],
    on_step: Callable[[], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Draw a batch of images.

    Noise is made in a second thread while the network is evaluated.

    Args:
        denoise: one network evaluation, (x, timestep) -> prediction, with float32 (batch,
            channels, height, width) and float32 (batch,). The prediction is overwritten.
        sampler: its steps are taken.
        seed: of the whole set.
        indices: number of each image in the set: with the seed it decides the noise.
        shape: (channels, height, width) of one image.
        on_step: called after each step.

    Returns:
        float32 (len(indices), *shape), standardised channels as the network was trained on.
    """
    x = normal_noise(seed, indices, sampler.schedule.steps, shape)
    noise = np.empty_like(x)
    timestep = np.empty(len(indices), dtype=np.float32)
    trajectory = Trajectory(sampler, (len(indices), *shape))
    with ThreadPoolExecutor(1, "noise") as background:
        for step in sampler.steps:
            timestep.fill(step.timestep)
            if step.deviation:
                pending = background.submit(
                    normal_noise, seed, indices, step.timestep, shape, noise
                )
            prediction = denoise(x, timestep)
            if step.deviation:
                pending.result()
            trajectory.step(step, x, prediction, noise)
            if on_step is not None:
                on_step()
    return x
