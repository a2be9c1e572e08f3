"""Denoising diffusion implicit models, DDIM."""

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


class DDIM(Sampler):
    """DDIM (Song et al., arXiv 2010.02502, eqs. 12 and 16).

    The noise in x is taken to be what x holds besides the clipped x0, as in guided-diffusion and
    in diffusers with ``use_clipped_model_output``: x0 and noise then make up x whatever was cut.

    Args:
        schedule: of the model.
        steps: how many steps to take; all of the schedule's by default.
        eta: share of fresh noise, from 0, none, to 1, as much as DDPM with "fixed_small" adds.
        clip: lowest and highest x0 for each channel, float32 (2, channels), or None.

    Raises:
        UserError: more steps than the schedule has, or ``eta`` outside [0, 1].
    """

    def __init__(
        self,
        schedule: Schedule,
        steps: int | None = None,
        eta: float = 0.0,
        clip: Array | None = None,
    ) -> None:
        if not 0 <= eta <= 1:
            raise UserError(f"sampler: eta {eta:g} is outside [0, 1]")
        timesteps = spaced_timesteps(schedule.steps, steps)
        table = [
            _step(schedule, timestep, previous, eta)
            for timestep, previous in zip(timesteps, [*timesteps[1:], -1], strict=True)
        ]
        super().__init__(schedule, table, clip)


def _step(schedule: Schedule, timestep: int, previous: int, eta: float) -> Step:
    signal_now, signal_next = signal(schedule, timestep), signal(schedule, previous)
    x_coefficient, prediction_coefficient = clean_estimate(schedule, timestep)
    # Eq. 16: the variance of the noise that is added.
    variance = eta**2 * (1 - signal_next) / (1 - signal_now) * (1 - signal_now / signal_next)
    # Eq. 12, with noise = (x - sqrt(signal_now) x0) / sqrt(1 - signal_now).
    direction = math.sqrt(max(1 - signal_next - variance, 0.0))
    x_weight = direction / math.sqrt(1 - signal_now)
    return Step(
        timestep=timestep,
        x_coefficient=x_coefficient,
        prediction_coefficient=prediction_coefficient,
        x0_weight=math.sqrt(signal_next) - math.sqrt(signal_now) * x_weight,
        x_weight=x_weight,
        deviation=math.sqrt(variance),
    )
