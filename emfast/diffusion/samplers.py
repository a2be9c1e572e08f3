"""Samplers: from the network's prediction at one timestep to the next, less noisy image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emfast.diffusion.schedule import Schedule
from engines.errors import UserError

Array = npt.NDArray[np.float32]


def spaced_timesteps(trained: int, steps: int) -> list[int]:
    """``steps`` of the ``trained`` timesteps, descending, evenly spaced and ending at the last.

    The trailing spacing of arXiv 2305.08891, table 2: sampling starts from pure noise however
    few steps are taken.

    Raises:
        UserError: ``steps`` outside [1, trained].
    """
    if not 1 <= steps <= trained:
        raise UserError(f"{steps} steps asked for; this model takes 1 to {trained}")
    return [math.ceil(trained * (steps - i) / steps) - 1 for i in range(steps)]


@dataclass(frozen=True)
class DDPMStep:
    """Coefficients of one ancestral step, in float64.

    x0 = x_coefficient x + prediction_coefficient prediction, clipped; then
    x_prev = x0_mean x0 + x_mean x + deviation noise.
    """

    timestep: int
    x_coefficient: float
    prediction_coefficient: float
    x0_mean: float
    x_mean: float
    deviation: float


class DDPM:
    """Ancestral sampling (Ho et al., arXiv 2006.11239, algorithm 2).

    Fewer steps than the schedule has are taken with the respaced variances of Nichol and Dhariwal
    (arXiv 2102.09672, section 4).

    Args:
        schedule: of the model.
        steps: how many steps to take; all of the schedule's by default.
        variance: "fixed_small", the posterior variance, or "fixed_large", beta itself (DDPM,
            section 3.2).
        clip: lowest and highest x0 for each channel, float32 (2, channels), or None.
    """

    def __init__(
        self,
        schedule: Schedule,
        steps: int | None = None,
        variance: str = "fixed_small",
        clip: npt.NDArray[np.float32] | None = None,
    ) -> None:
        if variance not in ("fixed_small", "fixed_large"):
            raise UserError(
                f"sampler: unknown variance {variance!r}; accepted: fixed_small, fixed_large"
            )
        self.schedule = schedule
        self.clip = None if clip is None else clip[:, None, :, None, None]
        timesteps = spaced_timesteps(schedule.steps, schedule.steps if steps is None else steps)
        previous = [*timesteps[1:], -1]
        self.steps = [
            self._coefficients(t, p, variance) for t, p in zip(timesteps, previous, strict=True)
        ]

    def _coefficients(self, timestep: int, previous: int, variance: str) -> DDPMStep:
        alphas = self.schedule.alphas_cumprod
        signal = float(alphas[timestep])
        signal_previous = float(alphas[previous]) if previous >= 0 else 1.0
        alpha = signal / signal_previous
        beta = 1 - alpha
        a, s = math.sqrt(signal), math.sqrt(1 - signal)
        # x0 from the prediction: DDPM eq. 15 for the noise, arXiv 2202.00512 for the velocity.
        if self.schedule.prediction == "epsilon":
            x_coefficient, prediction_coefficient = 1 / a, -s / a
        elif self.schedule.prediction == "v_prediction":
            x_coefficient, prediction_coefficient = a, -s
        else:
            x_coefficient, prediction_coefficient = 0.0, 1.0
        # The posterior's mean and variance: DDPM eq. 7. Nothing is added at the last step.
        posterior = (1 - signal_previous) / (1 - signal) * beta
        deviation = math.sqrt(beta if variance == "fixed_large" else posterior)
        return DDPMStep(
            timestep=timestep,
            x_coefficient=x_coefficient,
            prediction_coefficient=prediction_coefficient,
            x0_mean=math.sqrt(signal_previous) * beta / (1 - signal),
            x_mean=math.sqrt(alpha) * (1 - signal_previous) / (1 - signal),
            deviation=deviation if previous >= 0 else 0.0,
        )

    def step(self, step: DDPMStep, x: Array, prediction: Array, noise: Array | None) -> None:
        """Take ``x`` one step towards the image, in place.

        Args:
            step: one of :attr:`steps`.
            x: float32 (batch, channels, height, width), overwritten.
            prediction: of the network for ``x``, same shape; overwritten, used as scratch.
            noise: standard normal, same shape, overwritten; None where ``step.deviation`` is 0.
        """
        x0 = prediction
        x0 *= np.float32(step.prediction_coefficient)
        if step.x_coefficient:
            x0 += np.float32(step.x_coefficient) * x
        if self.clip is not None:
            np.clip(x0, self.clip[0], self.clip[1], out=x0)
        x0 *= np.float32(step.x0_mean)
        x *= np.float32(step.x_mean)
        x += x0
        if noise is not None and step.deviation:
            noise *= np.float32(step.deviation)
            x += noise
