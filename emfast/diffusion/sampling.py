"""The sampling loop: one loop for every engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from emfast.diffusion.noise import normal_noise
from emfast.diffusion.samplers import DDPM

Denoise = Callable[[npt.NDArray[np.float32], npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def sample(
    denoise: Denoise,
    sampler: DDPM,
    seed: int,
    indices: Sequence[int],
    shape: tuple[int, int, int],
    on_step: Callable[[], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Draw a batch of images.

    Args:
        denoise: one network evaluation, (x, timestep) -> prediction, with float32 (batch,
            channels, height, width) and float32 (batch,).
        sampler: takes each step.
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
    for step in sampler.steps:
        timestep.fill(step.timestep)
        prediction = denoise(x, timestep)
        if step.deviation:
            normal_noise(seed, indices, step.timestep, shape, out=noise)
        sampler.step(step, x, prediction, noise)
        if on_step is not None:
            on_step()
    return x
