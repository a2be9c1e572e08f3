"""Ancestral sampling, DDPM."""

from __future__ import annotations

import math

from emfast.diffusion.samplers.sampler import (
    Array,
    Sampler,
    Step,
    clean_estimate,
    signal,
    spaced_timesteps,
)
from emfast.diffusion.schedule import Schedule
from engines.errors import UserError


class DDPM(Sampler):
    """Ancestral sampling (Ho et al., arXiv 2006.11239, algorithm 2).

    Fewer steps than the schedule has are taken with the respaced variances of Nichol and Dhariwal
    (arXiv 2102.09672, section 4).

    Args:
        schedule: of the model.
        steps: how many steps to take; all of the schedule's by default.
        variance: "fixed_small", the posterior variance, or "fixed_large", beta itself (DDPM,
            section 3.2).
        clip: lowest and highest x0 for each channel, float32 (2, channels), or None.

    Raises:
        UserError: more steps than the schedule has, or an unknown variance.
    """

    def __init__(
        self,
        schedule: Schedule,
        steps: int | None = None,
        variance: str = "fixed_small",
        clip: Array | None = None,
    ) -> None:
        if variance not in ("fixed_small", "fixed_large"):
            raise UserError(
                f"sampler: unknown variance {variance!r}; accepted: fixed_small, fixed_large"
            )
        timesteps = spaced_timesteps(schedule.steps, steps)
        table = [
            _step(schedule, timestep, previous, variance)
            for timestep, previous in zip(timesteps, [*timesteps[1:], -1], strict=True)
        ]
        super().__init__(schedule, table, clip)


def _step(schedule: Schedule, timestep: int, previous: int, variance: str) -> Step:
    signal_now, signal_next = signal(schedule, timestep), signal(schedule, previous)
    alpha = signal_now / signal_next
    beta = 1 - alpha
    x_coefficient, prediction_coefficient = clean_estimate(schedule, timestep)
    # The posterior's mean and variance: DDPM eq. 7. Nothing is added at the last step.
    posterior = (1 - signal_next) / (1 - signal_now) * beta
    deviation = math.sqrt(beta if variance == "fixed_large" else posterior)
    return Step(
        timestep=timestep,
        x_coefficient=x_coefficient,
        prediction_coefficient=prediction_coefficient,
        x0_weight=math.sqrt(signal_next) * beta / (1 - signal_now),
        x_weight=math.sqrt(alpha) * (1 - signal_next) / (1 - signal_now),
        deviation=deviation if previous >= 0 else 0.0,
    )
