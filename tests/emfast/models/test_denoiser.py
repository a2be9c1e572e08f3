from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from emfast.diffusion.schedule import cosine_schedule
from emfast.models.denoiser import Denoiser, DenoiserConfig, MPConv, normalize_weight
from emfast.training.presets import DENOISER_PRESETS


@pytest.mark.parametrize("preset", list(DENOISER_PRESETS))
def test_presets_keep_to_the_budget(preset: str) -> None:
    """At most 12 GFLOP a 256 x 256 step and 15 M parameters."""
    settings = DENOISER_PRESETS[preset]
    config = DenoiserConfig(widths=settings.widths, blocks=settings.blocks, patch=settings.patch)
    model = Denoiser(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 2, 256, 256), torch.zeros(1))
    assert counter.get_total_flops() <= 12e9
    assert sum(p.numel() for p in model.parameters()) <= 15e6


def small(**kwargs: int) -> Denoiser:
    torch.manual_seed(0)
    model = Denoiser(DenoiserConfig(widths=(16, 32), blocks=1, embedding=16, **kwargs))
    with torch.no_grad():
        model.head_gain.fill_(1)
        for block in [*model.encoder, *model.decoder]:
            block[0].gain.fill_(0.5)  # type: ignore[index]
    return model


def test_magnitudes_are_preserved() -> None:
    model = small()
    with torch.no_grad():
        y = model(torch.randn(4, 2, 64, 64), torch.rand(4) * 699)
    assert 0.3 < y.std() < 3


def test_forced_normalisation_keeps_the_function() -> None:
    model = small()
    for module in model.modules():
        if isinstance(module, MPConv):
            module.weight.data.mul_(3)
    x, t = torch.randn(1, 2, 32, 32), torch.tensor([10.0])
    with torch.no_grad():
        before = model(x, t)
        model.normalize_weights()
        torch.testing.assert_close(model(x, t), before, rtol=1e-3, atol=1e-3)
    weight = model.stem.weight
    torch.testing.assert_close(normalize_weight(weight), weight, rtol=1e-3, atol=1e-3)


def test_preconditioning_is_the_least_squares_estimate() -> None:
    """Without a network, skip x is the best linear guess of v; out is the size of its error."""
    schedule = cosine_schedule(20)
    alphas = torch.from_numpy(schedule.alphas_cumprod)
    model = small(steps=20)
    model.precondition(alphas, deviation=0.5)
    torch.manual_seed(1)
    x0, noise = 0.5 * torch.randn(200_000), torch.randn(200_000)
    for t in (0, 9, 19):
        signal, sigma = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
        x, v = signal * x0 + sigma * noise, signal * noise - sigma * x0
        skip, out, scale = model.scales[t]
        assert (x * v).mean() / (x * x).mean() == pytest.approx(float(skip), abs=0.02)
        assert (v - skip * x).std() == pytest.approx(float(out), rel=0.02)
        assert (x * scale).std() == pytest.approx(1, rel=0.02)


def test_any_multiple_of_sixteen_works() -> None:
    model = Denoiser(DenoiserConfig(widths=(8, 8, 8), blocks=1, patch=4, embedding=8))
    assert model.multiple == 16
    with torch.no_grad():
        assert model(torch.zeros(1, 2, 16, 48), torch.zeros(1)).shape == (1, 2, 16, 48)
