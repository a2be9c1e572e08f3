from __future__ import annotations

import pytest
import torch
from torch import nn

from emfast.models.merged_unet import MergedUNet
from emfast.models.unet import UNet


@pytest.mark.parametrize("classes", [1, 3])
def test_it_is_the_same_function_to_the_border(classes: int) -> None:
    torch.manual_seed(0)
    source = UNet(classes, (8, 12, 16))
    with torch.no_grad():
        for module in source.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
            if isinstance(module, nn.ConvTranspose2d):
                module.bias.normal_()
    source.eval()
    x = torch.randn(2, 1, 24, 40)
    with torch.no_grad():
        expected, got = source(x), MergedUNet(source)(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
