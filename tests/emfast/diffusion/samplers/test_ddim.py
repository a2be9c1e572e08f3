from __future__ import annotations

import numpy as np
import pytest
from diffusers import DDIMScheduler

from emfast.diffusion.samplers import DDIM, DDPM
from emfast.diffusion.schedule import Prediction, cosine_schedule, linear_schedule
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


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [700, 20, 1])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("prediction", "zero_snr"), TARGETS)
def test_every_step_equals_that_of_diffusers(
    prediction: Prediction, zero_snr: bool, eta: float, steps: int, clip: bool
) -> None:
    peer = scheduler(DDIMScheduler, prediction, zero_snr, clip_sample=clip)
    peer.set_timesteps(steps)
    sampler = DDIM(table(peer, prediction), steps, eta, UNIT if clip else None)
    assert [s.timestep for s in sampler.steps] == peer.timesteps.tolist()
    for i, step in enumerate(sampler.steps):
        if 3 <= i < steps - 3 and i % 50:
            continue
        if zero_snr and eta == 1 and i == 0:
            continue  # diffusers takes the root of a rounding error here, which may be negative
        x, output, noise = normal(3 * i), normal(3 * i + 1), normal(3 * i + 2)
        expected = peer.step(
            double(output),
            step.timestep,
            double(x),
            eta,
            use_clipped_model_output=True,
            variance_noise=double(noise),
        ).prev_sample
        assert_close(one_step(sampler, step, x, output, noise), expected, step)


@pytest.mark.parametrize("steps", [700, 33, 2, 1])
def test_eta_of_one_is_ddpm(steps: int) -> None:
    for schedule in (linear_schedule(700), cosine_schedule(700)):
        for ddim, ddpm in zip(
            DDIM(schedule, steps, 1.0).steps, DDPM(schedule, steps).steps, strict=True
        ):
            assert ddim.timestep == ddpm.timestep
            values = [(s.x0_weight, s.x_weight, s.deviation) for s in (ddim, ddpm)]
            np.testing.assert_allclose(values[0], values[1], rtol=1e-9, atol=1e-12)


def test_eta_of_zero_adds_no_noise() -> None:
    assert not any(step.deviation for step in DDIM(cosine_schedule(700), 50).steps)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_outside_its_range_is_refused(eta: float) -> None:
    with pytest.raises(UserError, match="outside .0, 1."):
        DDIM(linear_schedule(10), eta=eta)
