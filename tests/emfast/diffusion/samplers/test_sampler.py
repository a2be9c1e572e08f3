from __future__ import annotations

import numpy as np
import pytest

from emfast.diffusion.samplers import (
    DDPM,
    SAMPLERS,
    Sampler,
    Trajectory,
    make_sampler,
    spaced_timesteps,
)
from emfast.diffusion.schedule import Prediction, cosine_schedule, linear_schedule
from engines.errors import UserError
from tests.emfast.diffusion.samplers.peers import (
    PREDICTIONS,
    SHAPE,
    TARGETS,
    Array,
    normal,
    one_step,
)

# A sampler's name, its eta and DDPM's variance.
KINDS = [
    ("ddpm", 0.0, "fixed_small"),
    ("ddpm", 0.0, "fixed_large"),
    ("ddim", 0.0, ""),
    ("ddim", 0.5, ""),
    ("dpm++", 0.0, ""),
]


def predicted(sampler: Sampler, timestep: int, x: Array, x0: Array) -> Array:
    """What a network predicts that takes x to be x0 and noise."""
    alpha = sampler.schedule.alphas_cumprod[timestep]
    a, s = np.sqrt(alpha), np.sqrt(1 - alpha)
    noise = (x - a * x0) / s
    return {"epsilon": noise, "v_prediction": a * noise - s * x0, "sample": x0}[
        sampler.schedule.prediction
    ].astype(np.float32)


@pytest.mark.parametrize("steps", [None, 50, 3, 1])
@pytest.mark.parametrize(("name", "eta", "variance"), KINDS)
@pytest.mark.parametrize(("prediction", "zero_snr"), TARGETS)
def test_a_perfect_network_leads_to_the_clean_image(
    prediction: Prediction, zero_snr: bool, name: str, eta: float, variance: str, steps: int | None
) -> None:
    schedule = cosine_schedule(700, prediction) if zero_snr else linear_schedule(700, prediction)
    sampler = make_sampler(name, schedule, steps, eta, variance)
    trajectory = Trajectory(sampler, SHAPE)
    x0 = np.clip(normal(1), -1, 1)
    x = normal(2)
    for i, step in enumerate(sampler.steps):
        trajectory.step(step, x, predicted(sampler, step.timestep, x, x0), normal(i + 3))
    np.testing.assert_allclose(x, x0, atol=1e-4)


@pytest.mark.parametrize(("name", "eta", "variance"), KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_sampling_keeps_the_variance_of_gaussian_data(
    prediction: Prediction, name: str, eta: float, variance: str
) -> None:
    # For x0 ~ N(0, c^2) the best prediction is known: E[x0 | x] = a c^2 x / (a^2 c^2 + s^2).
    c = 0.5
    sampler = make_sampler(name, linear_schedule(700, prediction), None, eta, variance)
    x = np.random.default_rng(0).standard_normal((1, 1, 64, 64), dtype=np.float32)
    trajectory = Trajectory(sampler, (1, 1, 64, 64))
    for i, step in enumerate(sampler.steps):
        alpha = sampler.schedule.alphas_cumprod[step.timestep]
        x0 = np.sqrt(alpha) * c**2 / (alpha * c**2 + 1 - alpha) * x
        noise = np.random.default_rng(i + 1).standard_normal(x.shape, dtype=np.float32)
        trajectory.step(step, x, predicted(sampler, step.timestep, x, x0), noise)
    assert x.std() == pytest.approx(c, rel=0.05)


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_channel_is_clipped_to_its_own_range(name: str) -> None:
    clip = np.array([[-1, -0.5, 0], [1, 0.5, 0.25]], dtype=np.float32)
    sampler = make_sampler(name, linear_schedule(10, "sample"), 1, clip=clip)
    for value, bound in ((9, clip[1]), (-9, clip[0])):
        output = np.full(SHAPE, value, dtype=np.float32)
        x = one_step(sampler, sampler.steps[0], np.zeros(SHAPE, np.float32), output)
        np.testing.assert_allclose(x[0, :, 0, 0], bound, rtol=1e-6)


@pytest.mark.parametrize(("trained", "steps"), [(700, 700), (700, 50), (700, 333), (5, 3), (1, 1)])
def test_timesteps_descend_from_the_last_trained_one(trained: int, steps: int) -> None:
    timesteps = spaced_timesteps(trained, steps)
    assert len(timesteps) == steps
    assert timesteps[0] == trained - 1
    assert timesteps[-1] >= 0
    gaps = -np.diff(timesteps)
    assert (gaps >= trained // steps).all()
    assert (gaps <= -(-trained // steps)).all()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [0, -1, 701])
def test_too_many_or_too_few_steps_are_refused(name: str, steps: int) -> None:
    with pytest.raises(UserError, match="takes 1 to 700"):
        make_sampler(name, linear_schedule(700), steps)


def test_names_and_what_they_take() -> None:
    schedule = linear_schedule(10)
    assert isinstance(make_sampler("ddpm", schedule), DDPM)
    with pytest.raises(UserError, match="unknown sampler 'euler'; accepted: ddpm, ddim, dpm"):
        make_sampler("euler", schedule, eta=0.5)
    for name in ("ddpm", "dpm++"):
        with pytest.raises(UserError, match="takes no eta"):
            make_sampler(name, schedule, eta=0.5)
