from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from emfast.diffusion.schedule import cosine_schedule
from emfast.models.denoiser import Block, Denoiser, DenoiserConfig
from emfast.models.folded import FoldedDenoiser, FoldedDenoiserWithFeatures, SubPixelConv


def trained(blocks: int) -> Denoiser:
    """A network of which every part matters."""
    torch.manual_seed(0)
    config = DenoiserConfig(widths=(16, 24, 32), blocks=blocks, patch=4, embedding=16, steps=50)
    model = Denoiser(config).eval()
    model.precondition(torch.from_numpy(cosine_schedule(50).alphas_cumprod))
    with torch.no_grad():
        model.head_gain.fill_(0.7)
        for module in model.modules():
            if isinstance(module, Block):
                module.gain.copy_(torch.rand(()) + 0.5)
                module.modulation.weight.mul_(2)
    return model


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("blocks", [1, 2])
def test_it_is_the_same_function(blocks: int, merged: bool) -> None:
    model = trained(blocks)
    folded = FoldedDenoiser(model, merged)
    for t in (0, 1, 25, 49):
        x, timestep = torch.randn(2, 2, 32, 48), torch.tensor([float(t), 49.0 - t])
        with torch.no_grad():
            torch.testing.assert_close(
                folded(x, timestep), model(x, timestep), rtol=1e-5, atol=1e-5
            )
    assert folded.multiple == model.multiple


@pytest.mark.parametrize("merged", [False, True])
def test_deep_features_are_what_the_finest_level_is_given(merged: bool) -> None:
    model = trained(2)
    folded = FoldedDenoiserWithFeatures(model, merged)
    x, timestep = torch.randn(2, 2, 32, 48), torch.tensor([3.0, 30.0])
    given: list[torch.Tensor] = []
    first = folded.decoder[-1][0]
    first.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.no_grad():
        prediction, features = folded(x, timestep)
        plain = FoldedDenoiser(model, merged)(x, timestep)
    torch.testing.assert_close(prediction, plain, rtol=0, atol=0)
    assert features.shape == (2, 24, 4, 6)
    torch.testing.assert_close(given[0], features, rtol=0, atol=0)


@pytest.mark.parametrize("merged", [False, True])
def test_it_does_not_share_weights(merged: bool) -> None:
    model = trained(1)
    folded = FoldedDenoiser(model, merged)
    x, timestep = torch.randn(1, 2, 32, 32), torch.tensor([3.0])
    with torch.no_grad():
        before = folded(x, timestep)
        for parameter in model.parameters():
            parameter.zero_()
        model.scales.zero_()
        torch.testing.assert_close(folded(x, timestep), before, rtol=0, atol=0)


@pytest.mark.parametrize("merged", [False, True])
def test_nothing_but_convolutions_holds_weights(merged: bool) -> None:
    folded = FoldedDenoiser(trained(2), merged)
    ups = {"MergedUpBlock", "SubPixelConv"} if merged else {"FoldedUpBlock"}
    assert {module.__class__.__name__ for module in folded.modules()} == {
        "FoldedDenoiser",
        "FoldedBlock",
        "FoldedConv",
        "ModuleList",
        *ups,
    }
    assert folded.table.shape == (50, 2 * 2 * (16 + 24 + 32))


def test_a_sub_pixel_convolution_is_one_of_the_enlarged_image() -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False)
    x = torch.randn(2, 3, 6, 7)
    with torch.no_grad():
        enlarged = F.interpolate(x, scale_factor=2.0, mode="nearest")
        torch.testing.assert_close(SubPixelConv(conv)(x), conv(enlarged), rtol=1e-5, atol=1e-6)
