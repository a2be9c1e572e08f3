from __future__ import annotations

import pytest
import torch

from emfast.models.unet import FULL, LIGHT, UNet


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_light_unet_is_the_seed_groups() -> None:
    assert parameters(UNet(1, LIGHT)) == 1_976_897


def test_the_full_unet_is_fifteen_point_seven_times_larger() -> None:
    assert parameters(UNet(1, FULL)) / parameters(UNet(1, LIGHT)) == pytest.approx(15.7, abs=0.05)


@pytest.mark.parametrize("classes", [1, 4])
def test_any_number_of_classes(classes: int) -> None:
    model = UNet(classes).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 32, 48)).shape == (2, classes, 32, 48)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model, x = UNet(), torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))
