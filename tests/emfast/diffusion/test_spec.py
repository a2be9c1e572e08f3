from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from emfast.channels import standard_channels
from emfast.diffusion.samplers import DPMSolver
from emfast.diffusion.schedule import cosine_schedule
from emfast.diffusion.spec import DenoiserSpec
from engines.errors import UserError


def make(clip: bool = True, variance: str = "fixed_large") -> DenoiserSpec:
    return DenoiserSpec(
        cosine_schedule(70), standard_channels(140, 30, 2), variance, clip, (64, 96)
    )


def test_spec_survives_a_manifest() -> None:
    spec = make()
    again = DenoiserSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert (again.channels, again.variance, again.clip, again.size) == (
        spec.channels,
        "fixed_large",
        True,
        (64, 96),
    )
    np.testing.assert_array_equal(again.schedule.alphas_cumprod, spec.schedule.alphas_cumprod)
    assert again.schedule.prediction == "v_prediction"


def test_sampler_follows_the_spec() -> None:
    assert len(make().sampler().steps) == 70
    assert len(make().sampler(7).steps) == 7
    assert make(clip=False).sampler().clip is None
    clip = make().sampler().clip
    assert clip is not None
    assert clip[1].ravel().tolist() == pytest.approx([115 / 60, 0.5, 0.5])
    assert isinstance(make().sampler(7, "dpm++"), DPMSolver)
    assert make().sampler(7, "ddim").steps[1].deviation == 0
    assert make().sampler(7, "ddim", 0.5).steps[1].deviation > 0
    large, small = make().sampler().steps[1], make(variance="fixed_small").sampler().steps[1]
    assert large.deviation > small.deviation


@pytest.mark.parametrize(
    "change",
    [{"schedule": None}, {"channels": 3}, {"channels": [{}]}, {"size": [64]}, {"size": ["a", 1]}],
)
def test_malformed_specs_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="missing or malformed"):
        DenoiserSpec.from_dict({**make().to_dict(), **change})


@pytest.mark.parametrize("key", ["schedule", "channels", "variance", "clip", "size"])
def test_incomplete_specs_are_refused(key: str) -> None:
    values = make().to_dict()
    del values[key]
    with pytest.raises(UserError, match="missing or malformed"):
        DenoiserSpec.from_dict(values)
