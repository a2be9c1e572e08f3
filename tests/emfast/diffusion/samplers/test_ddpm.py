from __future__ import annotations

import numpy as np
import pytest
from diffusers import DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

from emfast.diffusion.samplers import DDPM
from emfast.diffusion.schedule import Prediction, linear_schedule
from engines.errors import UserError
from tests.emfast.diffusion.samplers.peers import (
    TARGETS,
    UNIT,
    assert_close,
    double,
    normal,
    one_step,
    scheduler,
    table,
)


@pytest.mark.parametrize("steps", [700, 50, 1])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "fixed_small_log"])
@pytest.mark.parametrize(("prediction", "zero_snr"), TARGETS)
def test_every_step_equals_that_of_diffusers(
    prediction: Prediction,
    zero_snr: bool,
    variance: str,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = scheduler(DDPMScheduler, prediction, zero_snr, variance_type=variance)
    peer.set_timesteps(steps)
    sampler = DDPM(table(peer, prediction), steps, variance.removesuffix("_log"), UNIT)
    assert [s.timestep for s in sampler.steps] == peer.timesteps.tolist()
    for i, step in enumerate(sampler.steps):
        if 3 <= i < steps - 3 and i % 50:
            continue
        x, output, noise = normal(3 * i), normal(3 * i + 1), normal(3 * i + 2)
        # With fewer steps, diffusers adds noise at the last one too; emfast returns the mean.
        added = np.zeros_like(noise) if i == steps - 1 else noise
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, n=added, **__: double(n))
        expected = peer.step(double(output), step.timestep, double(x)).prev_sample
        assert_close(one_step(sampler, step, x, output, noise), expected, step)


def test_only_the_last_step_adds_no_noise() -> None:
    for variance in ("fixed_small", "fixed_large"):
        for steps in (700, 33, 1):
            deviations = [s.deviation for s in DDPM(linear_schedule(700), steps, variance).steps]
            assert deviations[-1] == 0
            assert all(d > 0 for d in deviations[:-1])


def test_unknown_variance_is_refused() -> None:
    with pytest.raises(UserError, match="'learned'; accepted: fixed_small, fixed_large"):
        DDPM(linear_schedule(10), variance="learned")
