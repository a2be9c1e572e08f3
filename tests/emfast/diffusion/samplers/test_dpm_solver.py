from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from emfast.diffusion.samplers import DPMSolver, Trajectory
from emfast.diffusion.schedule import Prediction, Schedule, cosine_schedule, linear_schedule
from tests.emfast.diffusion.samplers.peers import (
    SHAPE,
    TARGETS,
    UNIT,
    assert_close,
    double,
    normal,
    one_step,
    scheduler,
    table,
)

STEPS = [700, 20, 10, 2, 1]


def solver(
    prediction: Prediction, zero_snr: bool, steps: int, monkeypatch: pytest.MonkeyPatch, clip: bool
) -> Any:
    """diffusers' solver, clipped as its siblings are, with its table of sigmas in float64."""
    peer = scheduler(DPMSolverMultistepScheduler, prediction, zero_snr)
    peer.set_timesteps(steps)
    alphas = peer.alphas_cumprod[peer.timesteps]
    peer.sigmas = torch.cat([((1 - alphas) / alphas).sqrt(), torch.zeros(1)])
    if clip:
        convert = peer.convert_model_output
        monkeypatch.setattr(
            peer, "convert_model_output", lambda *a, **k: convert(*a, **k).clamp(-1, 1)
        )
    return peer


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("prediction", "zero_snr"), TARGETS)
def test_every_step_equals_that_of_diffusers(
    prediction: Prediction,
    zero_snr: bool,
    steps: int,
    clip: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Where no signal is to be left, diffusers leaves 2^-24 of it, so that lambda stays finite.
    peer = solver(prediction, zero_snr, steps, monkeypatch, clip)
    assert (peer.alphas_cumprod[-1] == 2**-24) == zero_snr
    sampler = DPMSolver(table(peer, prediction), steps, UNIT if clip else None)
    assert [s.timestep for s in sampler.steps] == peer.timesteps.tolist()
    trajectory = Trajectory(sampler, SHAPE)
    for i, step in enumerate(sampler.steps):
        x, output = normal(2 * i), normal(2 * i + 1)
        expected = peer.step(double(output), step.timestep, double(x)).prev_sample
        trajectory.step(step, x, output)
        assert_close(x, expected, step)


@pytest.mark.parametrize("steps", [s for s in STEPS if s > 1])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_steps_from_zero_terminal_snr_are_the_limit(
    prediction: Prediction, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_order = scheduler(DDIMScheduler, prediction, True, clip_sample=False)
    first_order.set_timesteps(steps)
    peer = solver(prediction, True, steps, monkeypatch, clip=False)
    sampler = DPMSolver(table(first_order, prediction), steps)
    assert sampler.schedule.zero_terminal_snr
    trajectory = Trajectory(sampler, SHAPE)
    for i, step in enumerate(sampler.steps):
        x, output = normal(2 * i), normal(2 * i + 1)
        expected = peer.step(double(output), step.timestep, double(x)).prev_sample
        if i < 2:  # x0 of pure noise gives no slope: these two are steps of DDIM
            expected = first_order.step(double(output), step.timestep, double(x)).prev_sample
            assert_close(one_step(sampler, step, x, output), expected, step)
        trajectory.step(step, x, output)
        assert_close(x, expected, step)


def test_coefficients_tend_to_those_of_zero_terminal_snr() -> None:
    exact = cosine_schedule(700)
    alphas = exact.alphas_cumprod.copy()
    alphas[-1] = 1e-300
    nearly = Schedule(alphas, "v_prediction", "test")
    for a, b in zip(DPMSolver(exact, 10).steps, DPMSolver(nearly, 10).steps, strict=True):
        values = [(s.x0_weight, s.previous_weight, s.x_weight) for s in (a, b)]
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values[0], values[1], atol=5e-3)


def test_twice_the_steps_are_four_times_as_exact() -> None:
    # For x0 ~ N(0, c^2) the flow is known: x keeps its place among the normal numbers.
    c = 0.5
    schedule = linear_schedule(700, "sample")

    def spread(timestep: int) -> float:
        alpha = schedule.alphas_cumprod[timestep]
        return float(np.sqrt(alpha * c**2 + 1 - alpha))

    errors, middle = [], 339
    for steps in (35, 70):
        sampler = DPMSolver(schedule, steps)
        trajectory = Trajectory(sampler, (1, 1, 1, 1))
        x = np.full((1, 1, 1, 1), spread(699), dtype=np.float32)
        for step in sampler.steps:
            if step.timestep == middle:
                break
            alpha = schedule.alphas_cumprod[step.timestep]
            x0 = np.sqrt(alpha) * c**2 / (alpha * c**2 + 1 - alpha) * x
            trajectory.step(step, x, x0.astype(np.float32))
        errors.append(abs(x.item() - spread(middle)))
    assert errors[1] < errors[0] / 3
