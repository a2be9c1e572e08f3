"""The light U-Net that segments, and the full one to compare it with."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LIGHT = (32, 32, 64, 128, 256)
FULL = (64, 128, 256, 512, 1024)


class DoubleConv(nn.Sequential):
    """Twice: 3 x 3 convolution, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )


class UNet(nn.Module):
    """U-Net with max-pooling, transposed convolutions and concatenated skips.

    Called with float32 (batch, 1, height, width), normalised greys, height and width divisible by
    :attr:`multiple`; returns logits, float32 (batch, classes, height, width).

    Args:
        classes: mask channels.
        widths: feature channels of each level, from fine to coarse. :data:`LIGHT` gives the seed
            group's network, 1 976 897 parameters for one class; :data:`FULL` the classic one.
        dropout: of the two coarsest levels, while training.
    """

    def __init__(
        self, classes: int = 1, widths: tuple[int, ...] = LIGHT, dropout: float = 0.5
    ) -> None:
        super().__init__()
        inputs = (1, *widths[:-1])
        self.encoder = nn.ModuleList(DoubleConv(a, b) for a, b in zip(inputs, widths, strict=True))
        coarse_to_fine = list(reversed(widths))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairwise(coarse_to_fine)
        )
        self.decoder = nn.ModuleList(DoubleConv(2 * b, b) for b in coarse_to_fine[1:])
        self.head = nn.Conv2d(widths[0], classes, 1)
        self.dropout = dropout
        self.dropped_levels = (len(widths) - 2, len(widths) - 1)
        self.multiple = 2 ** (len(widths) - 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, level in enumerate(self.encoder):
            x = level(x if i == 0 else F.max_pool2d(x, 2))
            if i in self.dropped_levels:
                # The dropped tensor is also the skip.
                x = F.dropout(x, self.dropout, self.training)
            skips.append(x)
        skips.pop()
        for up, level in zip(self.up, self.decoder, strict=True):
            x = level(torch.cat([skips.pop(), up(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits
