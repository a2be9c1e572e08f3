"""What samplers share: a table of coefficients, one row a step, and the arithmetic of a row.

Every sampler here is a table. So one loop takes the steps of all of them, in numpy or in a kernel
on a GPU, and a new sampler is one more way to fill the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emfast.diffusion.schedule import Schedule
from engines.errors import UserError

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """Coefficients of one step, in float64.

    x0 = x_coefficient x + prediction_coefficient prediction, clipped; then
    x_next = x0_weight x0 + previous_weight x0_previous + x_weight x + deviation noise,
    where x0_previous is the x0 of the step before.
    """

    timestep: int
    x_coefficient: float
    prediction_coefficient: float
    x0_weight: float
    x_weight: float
    previous_weight: float = 0.0
    deviation: float = 0.0


class Sampler:
    """The steps from noise to an image.

    Args:
        schedule: of the model.
        steps: in the order that they are taken.
        clip: lowest and highest x0 for each channel, float32 (2, channels), or None.
    """

    def __init__(self, schedule: Schedule, steps: Iterable[Step], clip: Array | None) -> None:
        self.schedule = schedule
        self.steps = tuple(steps)
        self.clip = clip


class Trajectory:
    """Takes a batch through the steps of a sampler, in place, in memory that is taken once.

    Args:
        sampler: whose steps are taken.
        shape: of the batch, (batch, channels, height, width).
    """

    def __init__(self, sampler: Sampler, shape: tuple[int, int, int, int]) -> None:
        self._clip = None if sampler.clip is None else sampler.clip[:, :, None, None]
        self._product = np.empty(shape, dtype=np.float32)
        multistep = any(step.previous_weight for step in sampler.steps)
        self._previous = np.zeros(shape, dtype=np.float32) if multistep else None

    def step(self, step: Step, x: Array, prediction: Array, noise: Array | None = None) -> None:
        """Take ``x`` one step towards the image.

        Args:
            step: the next of the sampler's.
            x: float32 (batch, channels, height, width), overwritten.
            prediction: of the network for ``x``, same shape; overwritten, used as scratch.
            noise: standard normal, same shape, overwritten; needed where ``step.deviation`` is
                not 0.
        """
        x0 = prediction
        x0 *= np.float32(step.prediction_coefficient)
        if step.x_coefficient:
            x0 += np.multiply(x, np.float32(step.x_coefficient), out=self._product)
        if self._clip is not None:
            np.clip(x0, self._clip[0], self._clip[1], out=x0)
        x *= np.float32(step.x_weight)
        if self._previous is not None:
            if step.previous_weight:
                weight = np.float32(step.previous_weight)
                x += np.multiply(self._previous, weight, out=self._product)
            self._previous[...] = x0
        x0 *= np.float32(step.x0_weight)
        x += x0
        if step.deviation:
            if noise is None:
                raise ValueError(f"timestep {step.timestep} adds noise, and none was given")
            noise *= np.float32(step.deviation)
            x += noise


def spaced_timesteps(trained: int, steps: int | None) -> list[int]:
    """``steps`` of the ``trained`` timesteps, descending, evenly spaced and ending at the last.

    The trailing spacing of arXiv 2305.08891, table 2. Sampling starts from pure noise, so the
    first timestep must be the one at which the network was shown pure noise, the last that was
    trained; other spacings begin below it and tell the network that the noise holds an image.

    Args:
        trained: number of timesteps of the schedule.
        steps: how many to take; all by default.

    Raises:
        UserError: ``steps`` outside [1, trained].
    """
    steps = trained if steps is None else steps
    if not 1 <= steps <= trained:
        raise UserError(f"{steps} steps asked for; this model takes 1 to {trained}")
    return [math.ceil(trained * (steps - i) / steps) - 1 for i in range(steps)]


def signal(schedule: Schedule, timestep: int) -> float:
    """alphas_cumprod at a timestep; 1, the clean image, at timestep -1."""
    return float(schedule.alphas_cumprod[timestep]) if timestep >= 0 else 1.0


def clean_estimate(schedule: Schedule, timestep: int) -> tuple[float, float]:
    """Coefficients of x and of the network's prediction in x0."""
    a, s = math.sqrt(signal(schedule, timestep)), math.sqrt(1 - signal(schedule, timestep))
    match schedule.prediction:
        case "epsilon":  # DDPM, eq. 15
            return 1 / a, -s / a
        case "v_prediction":  # Salimans and Ho, arXiv 2202.00512
            return a, -s
        case "sample":
            return 0.0, 1.0
