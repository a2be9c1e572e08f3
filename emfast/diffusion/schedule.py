"""The noise schedule: how much signal is left at each timestep, and what the network predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from engines.errors import UserError

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A discrete variance-preserving schedule.

    Timestep t in [0, steps - 1] turns clean data x0 into
    x_t = sqrt(alphas_cumprod[t]) x0 + sqrt(1 - alphas_cumprod[t]) noise (DDPM, eq. 4).

    Attributes:
        alphas_cumprod: float64 (steps,), decreasing, in [0, 1); 0 at the end is zero terminal SNR.
        prediction: what the network predicts: the noise, the velocity
            v = sqrt(alphas_cumprod) noise - sqrt(1 - alphas_cumprod) x0 (Salimans and Ho,
            arXiv 2202.00512) or x0 itself.
        name: how the schedule was made.
    """

    alphas_cumprod: npt.NDArray[np.float64]
    prediction: Prediction
    name: str

    def __post_init__(self) -> None:
        values = self.alphas_cumprod
        if values.ndim != 1 or len(values) < 1 or not np.isfinite(values).all():
            raise UserError("schedule: alphas_cumprod must be a list of finite numbers")
        if values.min() < 0 or values.max() >= 1 or (np.diff(values) >= 0).any():
            raise UserError("schedule: alphas_cumprod must decrease within [0, 1)")
        if self.prediction not in get_args(Prediction):
            raise UserError(
                f"schedule: unknown prediction type {self.prediction!r}; "
                f"accepted: {', '.join(get_args(Prediction))}"
            )
        if self.prediction == "epsilon" and values[-1] == 0:
            raise UserError(
                "schedule: zero terminal SNR needs v_prediction or sample: where no signal is "
                "left, the noise says nothing about the image"
            )

    @property
    def steps(self) -> int:
        """Number of timesteps."""
        return len(self.alphas_cumprod)

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the last timestep is pure noise."""
        return bool(self.alphas_cumprod[-1] == 0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; floats keep every digit."""
        return {
            "name": self.name,
            "steps": self.steps,
            "prediction": self.prediction,
            "zero_terminal_snr": self.zero_terminal_snr,
            "alphas_cumprod": self.alphas_cumprod.tolist(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Schedule:
        """The inverse of :meth:`to_dict`; :class:`UserError` for values that make no schedule."""
        try:
            alphas = np.asarray(values["alphas_cumprod"], dtype=np.float64)
            return cls(alphas, values["prediction"], str(values["name"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"schedule: missing or malformed entry ({error})") from None


def linear_schedule(
    steps: int = 700, prediction: Prediction = "epsilon", start: float = 1e-4, end: float = 0.02
) -> Schedule:
    """Linear betas (DDPM, section 4), the schedule of the seed paper."""
    betas = np.linspace(start, end, steps, dtype=np.float64)
    return Schedule(
        np.cumprod(1 - betas, dtype=np.float64), prediction, f"linear betas {start:g} to {end:g}"
    )


def cosine_schedule(
    steps: int = 700, prediction: Prediction = "v_prediction", shift: float = 0.25
) -> Schedule:
    """Cosine schedule, shifted towards noise, with zero terminal SNR.

    log SNR(t) = -2 log tan(pi t / 2) + 2 log shift for t in (0, 1] (simple diffusion, arXiv
    2301.11093, eqs. 4 and 6). ``shift`` is 64 / image side in that paper: neighbouring pixels of
    a large image are redundant and need more noise to hide its structure.
    """
    t = np.arange(1, steps + 1, dtype=np.float64) / steps
    # SNR = (shift / tan)^2, and alphas_cumprod = SNR / (1 + SNR); tan(pi / 2) is infinite.
    tan = np.tan(t * math.pi / 2)
    alphas = shift**2 / (shift**2 + tan**2)
    alphas[-1] = 0
    return Schedule(alphas, prediction, f"cosine, shift {shift:g}, zero terminal SNR")
