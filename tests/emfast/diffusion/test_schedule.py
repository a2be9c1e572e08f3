from __future__ import annotations

import json
import math

import numpy as np
import pytest

from emfast.diffusion.schedule import Schedule, cosine_schedule, linear_schedule
from engines.errors import UserError


def test_cosine_ends_in_pure_noise_and_is_shifted() -> None:
    schedule = cosine_schedule(700, shift=0.25)
    assert schedule.steps == 700
    assert schedule.zero_terminal_snr
    # Halfway an unshifted cosine schedule has SNR 1; the shift multiplies it by shift squared.
    middle = schedule.alphas_cumprod[349]
    assert middle / (1 - middle) == pytest.approx(0.25**2)


def test_linear_is_the_seed_papers() -> None:
    schedule = linear_schedule(700)
    assert schedule.prediction == "epsilon"
    assert schedule.alphas_cumprod[0] == pytest.approx(1 - 1e-4)
    assert math.sqrt(schedule.alphas_cumprod[-1]) == pytest.approx(0.029, abs=5e-4)


def test_json_keeps_every_digit() -> None:
    schedule = cosine_schedule(100)
    again = Schedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert (again.alphas_cumprod == schedule.alphas_cumprod).all()
    assert again.prediction == "v_prediction"


@pytest.mark.parametrize(
    ("alphas", "prediction", "message"),
    [
        ([0.9, 0.95], "epsilon", "must decrease"),
        ([1.0, 0.5], "epsilon", "within"),
        ([0.9, 0.0], "epsilon", "zero terminal SNR needs"),
        ([0.9, math.nan], "epsilon", "finite"),
        ([0.9, 0.5], "score", "unknown prediction type 'score'; accepted: epsilon"),
    ],
)
def test_impossible_schedules_are_refused(
    alphas: list[float], prediction: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Schedule(np.array(alphas), prediction, "test")  # type: ignore[arg-type]
