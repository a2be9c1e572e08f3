"""diffusers' schedulers with their tables in float64, to compare samplers with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from emfast.diffusion.samplers import Sampler, Step, Trajectory
from emfast.diffusion.schedule import Prediction, Schedule

Array = npt.NDArray[np.float32]
SHAPE = (2, 3, 8, 8)
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")
# A prediction type and whether the schedule has zero terminal SNR, which epsilon cannot have.
TARGETS = [(p, zero) for p in PREDICTIONS for zero in (False, True) if p != "epsilon" or not zero]
UNIT = np.array([[-1.0] * 3, [1.0] * 3], dtype=np.float32)


def normal(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32)


def double(values: Array) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float64))


def scheduler(kind: Any, prediction: Prediction, zero_snr: bool, **settings: Any) -> Any:
    """One of diffusers' schedulers over 700 timesteps.

    Its table is turned into float64: in float32, 1 - alphas_cumprod keeps four digits at the first
    timesteps.
    """
    made = kind(
        num_train_timesteps=700,
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing",
        **settings,
    )
    made.alphas_cumprod = made.alphas_cumprod.double()
    return made


def table(made: Any, prediction: Prediction) -> Schedule:
    """The same table as a schedule of emfast."""
    return Schedule(made.alphas_cumprod.numpy(), prediction, "test")


def one_step(
    sampler: Sampler, step: Step, x: Array, prediction: Array, noise: Array | None = None
) -> Array:
    """A single step of a sampler that keeps nothing of the steps before."""
    x = x.copy()
    Trajectory(sampler, SHAPE).step(
        step, x, prediction.copy(), None if noise is None else noise.copy()
    )
    return x


def assert_close(got: Array, expected: torch.Tensor, message: object) -> None:
    """Equal within 1e-5 of the root mean square, which rounding in float32 stays below."""
    scale = expected.square().mean().sqrt().item()
    np.testing.assert_allclose(
        got, expected.numpy(), rtol=0, atol=1e-5 * scale, err_msg=str(message)
    )
