"""A trained denoiser in the form that is exported: fewer operations, the same function.

* Magnitude-preserving layers become plain convolutions. The factors of the rescaled SiLU, of the
  weighted sums and of the head are multiplied into the weights that follow them.
* The timestep embedding is gone. Timesteps are whole numbers, so that the factors by which it
  scales the features of every block are computed here for all of them; the graph reads a row of
  that table. No matrix multiplication is left, which TensorRT-RTX lacks for FP32 on Turing GPUs.
* Where a level of the decoder begins, up-sampling, concatenation and convolution can be merged
  (:class:`MergedUpBlock`). On two cores of an AMD EPYC with AVX-512, FP32 steps of a network with
  three levels took 14 % less time for it through OpenVINO, through onnxruntime 10 %. INT8 steps
  took longer, and on GPUs it has not been tried, so that graphs of both forms are written.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from emfast.models.denoiser import (
    RESIDUAL,
    SILU_RMS,
    Block,
    Denoiser,
    MPConv,
    mp_cat,
    mp_cat_factors,
)


class FoldedConv(nn.Conv2d):
    """A magnitude-preserving convolution with its weights as they are used, times ``factor``.

    Args:
        source: of the weights.
        factor: of the result.
        inputs: the source's input channels that it takes; all by default.
    """

    def __init__(self, source: MPConv, factor: float = 1.0, inputs: slice | None = None) -> None:
        weight = source.effective_weight().detach()[:, inputs or slice(None)]
        outputs, channels, kernel = weight.shape[:3]
        super().__init__(channels, outputs, kernel, padding=kernel // 2, bias=False)
        with torch.no_grad():
            self.weight.copy_(weight * factor)


class SubPixelConv(nn.ConvTranspose2d):
    """Nearest up-sampling by 2 and the 3 x 3 convolution behind it as one transposed convolution.

    A pixel of the result sees four pixels of the small image, some of them two or four times: four
    products instead of nine (Shi et al., "Is the deconvolution layer the same as a convolutional
    layer?", arXiv 1609.07009).

    Args:
        conv: 3 x 3, padded by 1, without bias.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 4, stride=2, padding=1, bias=False)
        # Up-sampling is a transposed convolution with 2 x 2 ones; two in a row are one whose
        # kernel is the full convolution of their kernels.
        turned = F.pad(conv.weight.detach().double().flip(2, 3), (1, 1, 1, 1))
        with torch.no_grad():
            self.weight.copy_(4 * F.avg_pool2d(turned, 2, 1).transpose(0, 1))


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


class FoldedUpBlock(FoldedBlock):
    """The first block of a decoder's level, which begins by up-sampling."""

    def forward(self, x: Tensor, skip: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        h: Tensor = super().forward(mp_cat(x, skip), scale)
        return h


class MergedUpBlock(nn.Module):
    """A :class:`FoldedUpBlock` that convolves what is up-sampled and the skip apart.

    SiLU takes pixels one by one, and therefore may come before the up-sampling; a sum of two
    convolutions is the convolution of the concatenation.

    Args:
        source: the block.
        channels: of what is up-sampled; the rest of the block's inputs is the skip.
    """

    def __init__(self, source: Block, channels: int) -> None:
        super().__init__()
        norm = math.hypot(1 - RESIDUAL, RESIDUAL)
        keep = (1 - RESIDUAL) / norm
        up, beside = slice(0, channels), slice(channels, None)
        self.factors = mp_cat_factors(channels, source.conv1.weight.shape[1] - channels)
        self.conv1 = SubPixelConv(FoldedConv(source.conv1, 1 / SILU_RMS, up))
        self.conv1_skip = FoldedConv(source.conv1, 1 / SILU_RMS, beside)
        self.conv2 = FoldedConv(source.conv2, RESIDUAL / norm / SILU_RMS)
        assert isinstance(source.skip, MPConv)  # the concatenation is wider than the block
        self.skip = FoldedConv(source.skip, keep * self.factors[0], up)
        self.skip_skip = FoldedConv(source.skip, keep * self.factors[1], beside)

    def forward(self, x: Tensor, skip: Tensor, scale: Tensor) -> Tensor:
        of_x, of_skip = self.factors
        h: Tensor = self.conv1_skip(F.silu(skip * of_skip)) + self.conv1(F.silu(x * of_x))
        h = self.conv2(F.silu(h * scale[:, :, None, None])) + self.skip_skip(skip)
        h = h + F.interpolate(self.skip(x), scale_factor=2.0, mode="nearest")
        return h


class FoldedDenoiser(nn.Module):
    """A :class:`~emfast.models.denoiser.Denoiser` for inference, called in the same way.

    Timesteps must be whole numbers.

    Args:
        source: trained, in evaluation mode.
        merged: whether up-sampling is merged into the convolutions behind it.
    """

    table: Tensor
    scales: Tensor

    def __init__(self, source: Denoiser, merged: bool = False) -> None:
        super().__init__()
        self.patch, self.multiple = source.config.patch, source.multiple
        self.stem = FoldedConv(source.stem)
        self.encoder = nn.ModuleList(
            nn.ModuleList(FoldedBlock(block) for block in _blocks(level))
            for level in source.encoder
        )
        self.decoder = nn.ModuleList()
        width = 0
        for i, level in enumerate(source.decoder):
            blocks = _blocks(level)
            folded: list[nn.Module] = [FoldedBlock(block) for block in blocks]
            if i > 0:
                first = blocks[0]
                folded[0] = MergedUpBlock(first, width) if merged else FoldedUpBlock(first)
            self.decoder.append(nn.ModuleList(folded))
            width = blocks[-1].conv2.weight.shape[0]
        self.head = FoldedConv(source.head, source.head_gain.item() / SILU_RMS)
        self.register_buffer("scales", source.scales.clone())
        self.widths = [block.conv2.weight.shape[0] for block in _blocks(source)]
        self.register_buffer("table", _block_scales(source))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.with_deep_features(x, timestep)[0]

    def with_deep_features(self, x: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the network.

        Args:
            x, timestep: as for :class:`~emfast.models.denoiser.Denoiser`.

        Returns:
            The prediction, and what the coarser levels hand to the decoder's last: all that they
            add to it.
        """
        step = timestep.long()
        scales = self.scales[step][:, :, None, None, None]
        rows = iter(torch.split(self.table[step].to(self.stem.weight.dtype), self.widths, dim=1))
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
            deep = h
            for j, block in enumerate(level):  # type: ignore[arg-type]
                beside = (skips.pop(),) if i > 0 and j == 0 else ()
                h = block(h, *beside, next(rows))
        h = self.head(F.silu(h))
        prediction = x * scales[:, 0] + F.pixel_shuffle(h.float(), self.patch) * scales[:, 1]
        return prediction, deep


class FoldedDenoiserWithFeatures(FoldedDenoiser):
    """The same, returning :meth:`with_deep_features`, for export."""

    def forward(  # type: ignore[override]
        self, x: Tensor, timestep: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.with_deep_features(x, timestep)


def _blocks(network: nn.Module) -> list[Block]:
    return [module for module in network.modules() if isinstance(module, Block)]


@torch.no_grad()
def _block_scales(source: Denoiser) -> Tensor:
    """The factors of all blocks' features at all timesteps, float32 (steps, features)."""
    embedding = source.embedding(torch.arange(source.config.steps))
    return torch.cat([block.scale(embedding) for block in _blocks(source)], dim=1)
