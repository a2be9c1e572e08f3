"""A trained denoiser in the form that is exported: fewer operations, the same function.

* Magnitude-preserving layers become plain convolutions. The factors of the rescaled SiLU, of the
  weighted sums and of the head are multiplied into the weights that follow them.
* The timestep embedding is gone. Timesteps are whole numbers, so that the factors by which it
  scales the features of every block are computed here for all of them; the graph reads a row of
  that table. No matrix multiplication is left, which TensorRT-RTX lacks for FP32 on Turing GPUs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from emfast.models.denoiser import RESIDUAL, SILU_RMS, Block, Denoiser, Level, MPConv, mp_cat


class FoldedConv(nn.Conv2d):
    """A magnitude-preserving convolution with its weights as they are used, times ``factor``."""

    def __init__(self, source: MPConv, factor: float = 1.0) -> None:
        weight = source.effective_weight().detach()
        outputs, inputs, kernel = weight.shape[:3]
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        with torch.no_grad():
            self.weight.copy_(weight * factor)


class FoldedBlock(nn.Module):
    """A :class:`~emfast.models.denoiser.Block`, scaled by a row of the table."""

    def __init__(self, source: Block) -> None:
        super().__init__()
        norm = math.hypot(1 - RESIDUAL, RESIDUAL)
        self.keep = (1 - RESIDUAL) / norm
        self.skip = FoldedConv(source.skip, self.keep) if isinstance(source.skip, MPConv) else None
        self.conv1 = FoldedConv(source.conv1, 1 / SILU_RMS)
        self.conv2 = FoldedConv(source.conv2, RESIDUAL / norm / SILU_RMS)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        h: Tensor = self.conv2(F.silu(self.conv1(F.silu(x)) * scale[:, :, None, None]))
        return h + (x * self.keep if self.skip is None else self.skip(x))


class FoldedDenoiser(nn.Module):
    """A :class:`~emfast.models.denoiser.Denoiser` for inference, called in the same way.

    Timesteps must be whole numbers.

    Args:
        source: trained, in evaluation mode.
    """

    table: Tensor
    scales: Tensor

    def __init__(self, source: Denoiser) -> None:
        super().__init__()
        self.patch, self.multiple = source.config.patch, source.multiple
        self.stem = FoldedConv(source.stem)
        self.encoder = nn.ModuleList(_folded_level(level) for level in source.encoder)
        self.decoder = nn.ModuleList(_folded_level(level) for level in source.decoder)
        self.head = FoldedConv(source.head, source.head_gain.item() / SILU_RMS)
        self.register_buffer("scales", source.scales.clone())
        self.register_buffer("table", _block_scales(source))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        step = timestep.long()
        scales = self.scales[step][:, :, None, None, None]
        widths = [block.conv1.out_channels for block in self._blocks()]
        rows = iter(torch.split(self.table[step].to(self.stem.weight.dtype), widths, dim=1))
        h = F.pixel_unshuffle(x * scales[:, 2], self.patch)
        h = self.stem(torch.cat([h, torch.ones_like(h[:, :1])], dim=1))
        skips = []
        for i, level in enumerate(self.encoder):
            if i > 0:
                h = F.avg_pool2d(h, 2)
            for block in level:  # type: ignore[attr-defined]
                h = block(h, next(rows))
            skips.append(h)
        skips.pop()
        for i, level in enumerate(self.decoder):
            if i > 0:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
                h = mp_cat(h, skips.pop())
            for block in level:  # type: ignore[attr-defined]
                h = block(h, next(rows))
        h = self.head(F.silu(h))
        return x * scales[:, 0] + F.pixel_shuffle(h.float(), self.patch) * scales[:, 1]

    def _blocks(self) -> list[FoldedBlock]:
        return [module for module in self.modules() if isinstance(module, FoldedBlock)]


def _folded_level(level: nn.Module) -> nn.ModuleList:
    assert isinstance(level, Level)
    return nn.ModuleList(FoldedBlock(block) for block in level if isinstance(block, Block))


@torch.no_grad()
def _block_scales(source: Denoiser) -> Tensor:
    """The factors of all blocks' features at all timesteps, float32 (steps, features)."""
    embedding = source.embedding(torch.arange(source.config.steps))
    blocks = [module for module in source.modules() if isinstance(module, Block)]
    return torch.cat([block.scale(embedding) for block in blocks], dim=1)
