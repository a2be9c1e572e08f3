from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from emfast.data.stack import Stack
from emfast.training.batches import flip_turn
from emfast.training.denoiser import DenoiserTask, coarse_error
from emfast.training.presets import DENOISER_PRESETS, DenoiserSettings
from engines.errors import UserError

DENOISER = DENOISER_PRESETS["default"].override(
    widths=(16, 16), blocks=1, steps=20, crops=((32, 2),)
)


def timesteps(task: DenoiserTask, iterations: range) -> np.ndarray[Any, Any]:
    """As a share of all, what the network is given."""
    seen: list[Tensor] = []
    with task.network.register_forward_pre_hook(lambda _, given: seen.append(given[1])):
        for iteration in iterations:
            task.losses(iteration)
    return torch.cat(seen).numpy() / task.settings.steps


def test_timesteps_are_drawn_by_the_skew_of_their_crops(stack: Stack) -> None:
    settings = DENOISER.override(
        crops=((32, 64), (64, 64), (32, 64)), skew=(0.5, 1.0, 3.0), steps=1000
    )
    task = DenoiserTask(settings, stack, torch.device("cpu"))
    for first, skew in enumerate(settings.skew):
        drawn = timesteps(task, range(first, 6, 3))
        # P(t <= q) = 1 - (1 - q)^(1 / skew); half a timestep and 1 of 128 draws are the error.
        for share in (0.25, 0.5, 0.9):
            expected = 1 - (1 - share) ** (1 / skew)
            assert (drawn <= share).mean() == pytest.approx(expected, abs=0.02)


def test_the_last_timestep_is_the_highest(stack: Stack) -> None:
    settings = DENOISER.override(crops=((32, 2),), skew=(1000.0,))
    task = DenoiserTask(settings, stack, torch.device("cpu"))
    assert np.median(timesteps(task, range(20))) == (settings.steps - 1) / settings.steps


def test_other_crops_than_the_presets_have_uniform_timesteps() -> None:
    default = DENOISER_PRESETS["default"]
    assert default.override(crops=((64, 2),)).skew == (1.0,)
    assert default.override(iterations=3).skew == default.skew
    assert default.override(crops=((64, 2),), skew=(2.0,)).skew == (2.0,)


def test_every_kind_of_crops_needs_its_skew() -> None:
    with pytest.raises(UserError, match="1 skews for 2 kinds of crops"):
        DENOISER_PRESETS["default"].override(skew=(1.0,))


def test_runs_from_before_their_settings_can_be_read() -> None:
    values = DENOISER_PRESETS["default"].to_dict()
    del values["skew"], values["coarse"], values["mask_weight"], values["symmetries"]
    settings = DenoiserSettings.from_dict({**values, "dihedral": True})
    assert settings.skew == (1.0, 1.0)
    assert (settings.coarse, settings.mask_weight) == (0, 1)
    assert settings.symmetries == tuple(range(8))
    assert DenoiserSettings.from_dict({**values, "dihedral": False}).symmetries == (0,)


def test_crops_get_the_symmetries_of_the_settings(stack: Stack) -> None:
    # Of 64 crops, each of two symmetries is missing once in 2^64 times.
    for symmetries in ((0,), (2,), (0, 2)):
        settings = replace(DENOISER, crops=((96, 64),), skew=(1.0,), symmetries=symmetries)
        images, masks = DenoiserTask(settings, stack, torch.device("cpu"))._batch(0)
        for crops, slices in ((images, stack.images), (masks, stack.labels())):
            expected = {flip_turn(whole, n).tobytes() for whole in slices for n in symmetries}
            assert {crop.tobytes() for crop in crops} == expected


def test_coarse_errors_weigh_by_the_side_of_their_squares() -> None:
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    shift = torch.ones(8, 8)
    checkers = 1.0 - 2 * ((x + y) % 2)
    # Two pixels each; their mean over 4 x 4 pixels is 0.
    wide = 1.0 - 2 * ((x // 2 + y // 2) % 2)
    differences = torch.stack([shift, checkers, wide, 3 * wide])
    expected = [2 + 4 + 8, 0, 2, 18]
    assert coarse_error(differences[None]).tolist() == pytest.approx(expected)
    # The batch is averaged, and squares that do not tile the crop are left out.
    batch = torch.stack([differences, 0 * differences])
    assert coarse_error(batch).tolist() == pytest.approx([value / 2 for value in expected])
    assert coarse_error(torch.ones(1, 1, 4, 6)).tolist() == pytest.approx([2])


def test_the_loss_weighs_coarse_errors_and_masks(stack: Stack) -> None:
    def losses(coarse: float, mask_weight: float) -> dict[str, float]:
        settings = replace(DENOISER, coarse=coarse, mask_weight=mask_weight)
        task = DenoiserTask(settings, stack, torch.device("cpu"))
        return {name: value.item() for name, value in task.losses(0).items()}

    pixels, once, twice = (losses(coarse, 1) for coarse in (0.0, 0.1, 0.2))
    assert pixels["loss"] == pytest.approx((pixels["image"] + pixels["mask"]) / 2)
    assert losses(0, 3)["loss"] == pytest.approx((pixels["image"] + 3 * pixels["mask"]) / 4)
    assert once["loss"] > pixels["loss"]
    assert twice["loss"] - once["loss"] == pytest.approx(once["loss"] - pixels["loss"], rel=1e-3)
    assert (once["image"], once["mask"]) == (pixels["image"], pixels["mask"])
