from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

from emfast.diffusion.samplers import DDPM, spaced_timesteps
from emfast.diffusion.schedule import Prediction, Schedule, cosine_schedule, linear_schedule
from engines.errors import UserError

Array = npt.NDArray[np.float32]
SHAPE = (2, 3, 8, 8)
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")
# A prediction type and whether the schedule has zero terminal SNR, which epsilon cannot have.
TARGETS = [(p, zero) for p in PREDICTIONS for zero in (False, True) if p != "epsilon" or not zero]
UNIT = np.array([[-1.0] * 3, [1.0] * 3], dtype=np.float32)


def normal(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32)


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
    scheduler = DDPMScheduler(
        num_train_timesteps=700,
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_snr,
        variance_type=variance,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    schedule = Schedule(scheduler.alphas_cumprod.double().numpy(), prediction, "test")
    sampler = DDPM(schedule, steps, variance.removesuffix("_log"), UNIT)
    assert [s.timestep for s in sampler.steps] == scheduler.timesteps.tolist()
    some = {0, 1, 2, len(sampler.steps) // 2, len(sampler.steps) - 2, len(sampler.steps) - 1}
    for i in sorted(some & set(range(steps))):
        step = sampler.steps[i]
        x, output, noise = normal(3 * i), normal(3 * i + 1), normal(3 * i + 2)
        last = i == len(sampler.steps) - 1
        # With fewer steps, diffusers adds noise at the last one too; emfast returns the mean.
        added = np.zeros_like(noise) if last else noise
        monkeypatch.setattr(
            scheduling_ddpm, "randn_tensor", lambda *_, n=added, **__: torch.from_numpy(n)
        )
        expected = scheduler.step(
            torch.from_numpy(output), step.timestep, torch.from_numpy(x)
        ).prev_sample.numpy()
        got = x.copy()
        sampler.step(step, got, output.copy(), noise.copy())
        # diffusers takes 1 - alpha in FP32, where it cancels to four digits at the first steps.
        np.testing.assert_allclose(got, expected, atol=3e-4, rtol=0, err_msg=str(step))


@pytest.mark.parametrize("steps", [None, 50, 3, 1])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("prediction", "zero_snr"), TARGETS)
def test_a_perfect_network_leads_to_the_clean_image(
    prediction: Prediction, zero_snr: bool, variance: str, steps: int | None
) -> None:
    schedule = cosine_schedule(700, prediction) if zero_snr else linear_schedule(700, prediction)
    sampler = DDPM(schedule, steps, variance)
    x0 = np.clip(normal(1), -1, 1)
    x = normal(2)
    for i, step in enumerate(sampler.steps):
        a = np.sqrt(schedule.alphas_cumprod[step.timestep])
        s = np.sqrt(1 - schedule.alphas_cumprod[step.timestep])
        noise = (x - a * x0) / s
        output = {"epsilon": noise, "v_prediction": a * noise - s * x0, "sample": x0}[prediction]
        sampler.step(step, x, output.astype(np.float32), normal(i + 3))
    np.testing.assert_allclose(x, x0, atol=1e-4)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_sampling_keeps_the_variance_of_gaussian_data(
    prediction: Prediction, variance: str
) -> None:
    # For x0 ~ N(0, c^2) the best prediction is known: E[x0 | x] = a c^2 x / (a^2 c^2 + s^2).
    c = 0.5
    schedule = linear_schedule(700, prediction)
    sampler = DDPM(schedule, None, variance)
    x = np.random.default_rng(0).standard_normal((1, 1, 64, 64), dtype=np.float32)
    for i, step in enumerate(sampler.steps):
        alpha = schedule.alphas_cumprod[step.timestep]
        a, s = np.sqrt(alpha), np.sqrt(1 - alpha)
        x0 = a * c**2 / (alpha * c**2 + 1 - alpha) * x
        noise = (x - a * x0) / s
        output = {"epsilon": noise, "v_prediction": a * noise - s * x0, "sample": x0}[prediction]
        rng = np.random.default_rng(i + 1)
        sampler.step(
            step, x, output.astype(np.float32), rng.standard_normal(x.shape, dtype=np.float32)
        )
    assert x.std() == pytest.approx(c, rel=0.05)


def test_each_channel_is_clipped_to_its_own_range() -> None:
    clip = np.array([[-1, -0.5, 0], [1, 0.5, 0.25]], dtype=np.float32)
    sampler = DDPM(linear_schedule(10, "sample"), 1, clip=clip)
    x = np.zeros(SHAPE, dtype=np.float32)
    sampler.step(sampler.steps[0], x, np.full(SHAPE, 9, dtype=np.float32), None)
    np.testing.assert_allclose(x[0, :, 0, 0], clip[1], rtol=1e-6)
    x = np.zeros(SHAPE, dtype=np.float32)
    sampler.step(sampler.steps[0], x, np.full(SHAPE, -9, dtype=np.float32), None)
    np.testing.assert_allclose(x[0, :, 0, 0], clip[0], rtol=1e-6)


def test_only_the_last_step_adds_no_noise() -> None:
    for variance in ("fixed_small", "fixed_large"):
        for steps in (700, 33, 1):
            deviations = [s.deviation for s in DDPM(linear_schedule(700), steps, variance).steps]
            assert deviations[-1] == 0
            assert all(d > 0 for d in deviations[:-1])


@pytest.mark.parametrize(("trained", "steps"), [(700, 700), (700, 50), (700, 333), (5, 3), (1, 1)])
def test_timesteps_descend_from_the_last_trained_one(trained: int, steps: int) -> None:
    timesteps = spaced_timesteps(trained, steps)
    assert len(timesteps) == steps
    assert timesteps[0] == trained - 1
    assert timesteps[-1] >= 0
    gaps = -np.diff(timesteps)
    assert (gaps >= trained // steps).all()
    assert (gaps <= -(-trained // steps)).all()


@pytest.mark.parametrize("steps", [0, -1, 701])
def test_too_many_or_too_few_steps_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match="takes 1 to 700"):
        DDPM(linear_schedule(700), steps)


def test_unknown_variance_is_refused() -> None:
    with pytest.raises(UserError, match="'learned'; accepted: fixed_small, fixed_large"):
        DDPM(linear_schedule(10), variance="learned")
