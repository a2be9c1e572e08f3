"""The fast solver of the probability flow equation, DPM-Solver++ (2M)."""

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


class DPMSolver(Sampler):
    """DPM-Solver++ (2M), multistep of second order (Lu et al., arXiv 2211.01095, algorithm 2).

    Every step but the first and the last extrapolates x0 from the last two evaluations.

    Args:
        schedule: of the model.
        steps: how many steps to take; all of the schedule's by default.
        clip: lowest and highest x0 for each channel, float32 (2, channels), or None.

    Raises:
        UserError: more steps than the schedule has.
    """

    def __init__(
        self, schedule: Schedule, steps: int | None = None, clip: Array | None = None
    ) -> None:
        timesteps = spaced_timesteps(schedule.steps, steps)
        before = [None, *timesteps[:-1]]
        after = [*timesteps[1:], -1]
        table = [_step(schedule, *three) for three in zip(before, timesteps, after, strict=True)]
        super().__init__(schedule, table, clip)


def _step(schedule: Schedule, before: int | None, timestep: int, after: int) -> Step:
    signal_now, signal_next = signal(schedule, timestep), signal(schedule, after)
    a_now, s_now = math.sqrt(signal_now), math.sqrt(1 - signal_now)
    a_next, s_next = math.sqrt(signal_next), math.sqrt(1 - signal_next)
    x_coefficient, prediction_coefficient = clean_estimate(schedule, timestep)
    # Algorithm 2 with exp(-h) = (a_now s_next) / (s_now a_next) multiplied out. So written, the
    # weight of x0 is finite where lambda is not: at zero terminal SNR, and at the clean image.
    weight = a_next - a_now * s_next / s_now
    extrapolation = 0.0
    # The first step has no x0 before it. The last one, to a lambda of infinity, has no second
    # order: it takes x0 as it is.
    if before is not None and after >= 0:
        now = _half_log_snr(signal_now)
        # 1 / (2 r) = h / (2 h_before). What was estimated from pure noise lies infinitely far away
        # in lambda and weighs nothing, which makes the step after it one of first order.
        extrapolation = (_half_log_snr(signal_next) - now) / (
            2 * (now - _half_log_snr(signal(schedule, before)))
        )
    return Step(
        timestep=timestep,
        x_coefficient=x_coefficient,
        prediction_coefficient=prediction_coefficient,
        x0_weight=weight * (1 + extrapolation),
        x_weight=s_next / s_now,
        previous_weight=-weight * extrapolation,
    )


def _half_log_snr(signal: float) -> float:
    """lambda = log(sqrt(signal) / sqrt(1 - signal)); minus infinity where no signal is left."""
    return (math.log(signal) - math.log1p(-signal)) / 2 if signal else -math.inf
