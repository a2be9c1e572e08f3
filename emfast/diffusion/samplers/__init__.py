"""Samplers: from the network's predictions to an image, in many steps or few."""

from __future__ import annotations

from emfast.diffusion.samplers.ddim import DDIM
from emfast.diffusion.samplers.ddpm import DDPM
from emfast.diffusion.samplers.dpm_solver import DPMSolver
from emfast.diffusion.samplers.sampler import Array, Sampler, Step, Trajectory, spaced_timesteps
from emfast.diffusion.schedule import Schedule
from engines.errors import UserError

SAMPLERS = ("ddpm", "ddim", "dpm++")
# What --fast takes: docs/steps.md tells what it costs.
FAST_SAMPLER, FAST_STEPS = "dpm++", 100

__all__ = [
    "DDIM",
    "DDPM",
    "FAST_SAMPLER",
    "FAST_STEPS",
    "SAMPLERS",
    "DPMSolver",
    "Sampler",
    "Step",
    "Trajectory",
    "make_sampler",
    "spaced_timesteps",
]


def make_sampler(
    name: str,
    schedule: Schedule,
    steps: int | None = None,
    eta: float = 0.0,
    variance: str = "fixed_small",
    clip: Array | None = None,
) -> Sampler:
    """A sampler by its name.

    Args:
        name: one of :data:`SAMPLERS`.
        schedule: of the model.
        steps: how many steps to take; all of the schedule's by default.
        eta: of "ddim", in [0, 1]; the others take none.
        variance: of "ddpm", "fixed_small" or "fixed_large".
        clip: lowest and highest x0 for each channel, float32 (2, channels), or None.

    Raises:
        UserError: an unknown name, or a value that the sampler does not take.
    """
    if eta and name != "ddim" and name in SAMPLERS:
        raise UserError(f"sampler {name} takes no eta; give eta to ddim, or leave it out")
    match name:
        case "ddpm":
            return DDPM(schedule, steps, variance, clip)
        case "ddim":
            return DDIM(schedule, steps, eta, clip)
        case "dpm++":
            return DPMSolver(schedule, steps, clip)
    raise UserError(f"unknown sampler {name!r}; accepted: {', '.join(SAMPLERS)}")
