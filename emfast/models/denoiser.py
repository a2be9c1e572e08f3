"""The denoiser: a small U-Net that draws an EM image and its masks together.

Every step of a 700-step sampling runs this network once, so it is designed for inference:

* a space-to-depth stem, so that no convolution runs at full resolution;
* no normalisation layer. Activations keep unit magnitude by construction instead: weights are
  normalised, sums and concatenations have fixed weights and SiLU is rescaled (magnitude-preserving
  layers; Karras et al., EDM2, arXiv 2312.02696). :mod:`emfast.models.folded` turns them into
  plain convolutions for export, and nothing in the graph can overflow FP16;
* convolutions only, so that any height and width divisible by :attr:`Denoiser.multiple` works.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# E[silu(x)^2] = 0.596^2 for x ~ N(0, 1): EDM2, eq. 81.
SILU_RMS = 0.596
# Weight of a block's output beside its input: EDM2, table 1, "residual blend".
RESIDUAL = 0.3


@dataclass(frozen=True)
class DenoiserConfig:
    """Shape of a :class:`Denoiser`.

    Attributes:
        in_channels: image and mask channels together; 2 is one grey image and one mask.
        widths: feature channels of each resolution level, from fine to coarse.
        blocks: residual blocks of each level, or of all, in the encoder and again in the decoder.
        patch: space-to-depth factor of the stem.
        embedding: channels of the timestep embedding.
        steps: timesteps of the training schedule; timesteps are given in [0, steps - 1].
    """

    in_channels: int = 2
    widths: tuple[int, ...] = (24, 56, 112, 176, 128)
    blocks: int | tuple[int, ...] = (2, 2, 2, 2, 1)
    patch: int = 2
    embedding: int = 192
    steps: int = 700

    @property
    def depths(self) -> tuple[int, ...]:
        """Residual blocks of each level."""
        if isinstance(self.blocks, int):
            return (self.blocks,) * len(self.widths)
        return self.blocks

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DenoiserConfig:
        """The inverse of :meth:`to_dict`."""
        blocks = values.get("blocks", cls.blocks)
        if not isinstance(blocks, int):
            blocks = tuple(blocks)
        return cls(**{**values, "widths": tuple(values["widths"]), "blocks": blocks})


def mp_silu(x: Tensor) -> Tensor:
    """SiLU scaled to keep unit magnitude (EDM2, eq. 81)."""
    return F.silu(x) / SILU_RMS


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Weighted sum of two unit-magnitude tensors, of unit magnitude (EDM2, eq. 88)."""
    norm = math.sqrt((1 - t) ** 2 + t**2)
    return a * ((1 - t) / norm) + b * (t / norm)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """Concatenate along channels so that both inputs contribute equally (EDM2, eq. 103)."""
    of_a, of_b = mp_cat_factors(a.shape[1], b.shape[1])
    return torch.cat([a * of_a, b * of_b], dim=1)


def mp_cat_factors(na: int, nb: int) -> tuple[float, float]:
    """The factors of :func:`mp_cat` for tensors of ``na`` and ``nb`` channels."""
    scale = math.sqrt((na + nb) / 2)
    return scale / math.sqrt(na), scale / math.sqrt(nb)


def normalize_weight(weight: Tensor) -> Tensor:
    """Scale every output channel's weights to unit root mean square (EDM2, eq. 47)."""
    dims = tuple(range(1, weight.ndim))
    norm = torch.linalg.vector_norm(weight, dim=dims, keepdim=True, dtype=torch.float32)
    scale: Tensor = norm / math.sqrt(weight[0].numel()) + 1e-4
    return weight / scale


class MPConv(nn.Module):
    """Convolution (or linear layer, ``kernel=0``) with magnitude-preserving weights."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        shape = (out_channels, in_channels) + (kernel, kernel) * (kernel > 0)
        self.kernel = kernel
        self.weight = nn.Parameter(torch.randn(shape))

    def effective_weight(self) -> Tensor:
        """The weights that the convolution uses, of unit norm for each output channel."""
        return normalize_weight(self.weight) / math.sqrt(self.weight[0].numel())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.effective_weight()
        if self.kernel == 0:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=self.kernel // 2)


class Block(nn.Module):
    """Residual block whose hidden features are scaled by the timestep embedding."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int) -> None:
        super().__init__()
        self.skip = (
            MPConv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        )
        self.conv1 = MPConv(in_channels, out_channels, 3)
        self.conv2 = MPConv(out_channels, out_channels, 3)
        self.modulation = MPConv(embedding, out_channels, 0)
        self.gain = nn.Parameter(torch.zeros(()))

    def scale(self, embedding: Tensor) -> Tensor:
        """The factor of each hidden feature, (batch, out_channels)."""
        factor: Tensor = self.modulation(embedding) * self.gain + 1
        return factor

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(mp_silu(x))
        h = self.conv2(mp_silu(h * self.scale(embedding)[:, :, None, None].to(h.dtype)))
        return mp_sum(self.skip(x), h, RESIDUAL)


class Level(nn.ModuleList):
    """The blocks of one resolution, one after another."""

    def __init__(self, in_channels: int, width: int, blocks: int, embedding: int) -> None:
        inputs = [in_channels, *[width] * (blocks - 1)]
        super().__init__(Block(channels, width, embedding) for channels in inputs)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            x = block(x, embedding)
        return x


class TimestepEmbedding(nn.Module):
    """Magnitude-preserving Fourier features of the timestep (EDM2, eq. 75) and one layer."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        # Up to 16 periods over the schedule: fine enough to tell neighbouring timesteps apart,
        # coarse enough to generalise between them.
        generator = torch.Generator().manual_seed(0)
        frequencies = torch.linspace(0.25, 16, channels // 2).repeat_interleave(2)
        self.register_buffer("frequencies", 2 * math.pi * frequencies)
        phases = torch.rand(channels, generator=generator) * 2 * math.pi
        self.register_buffer("phases", phases)
        self.linear = MPConv(channels, channels, 0)

    def forward(self, timestep: Tensor) -> Tensor:
        t = timestep.float()[:, None] / self.steps
        features = math.sqrt(2) * torch.cos(t * self.frequencies + self.phases)
        return mp_silu(self.linear(features))


class Denoiser(nn.Module):
    """Predicts the diffusion target (velocity by default) of image and masks jointly.

    The prediction is skip x + out network(in x): what the noisy pixel alone tells about the target
    is given, the network learns the rest (Karras et al., EDM, arXiv 2206.00364, eq. 7, here for
    velocities). Without :meth:`precondition` it is the network's output itself.

    Called with ``x``, float32 (batch, in_channels, height, width), noisy standardised channels,
    and ``timestep``, float32 or integer (batch,) in [0, steps - 1]; returns float32 of the shape
    of ``x``. Height and width must be divisible by :attr:`multiple`.
    """

    scales: Tensor

    def __init__(self, config: DenoiserConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DenoiserConfig()
        widths, emb = config.widths, config.embedding
        pixels = config.in_channels * config.patch**2
        self.embedding = TimestepEmbedding(emb, config.steps)
        # One constant channel beside the pixels stands in for the missing biases.
        self.stem = MPConv(pixels + 1, widths[0], 3)
        self.encoder = nn.ModuleList()
        channels = widths[0]
        for width, depth in zip(widths, config.depths, strict=True):
            self.encoder.append(Level(channels, width, depth, emb))
            channels = width
        self.decoder = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            if i != len(widths) - 1:
                channels += width  # the skip connection
            self.decoder.append(Level(channels, width, config.depths[i], emb))
            channels = width
        self.head = MPConv(channels, pixels, 3)
        self.head_gain = nn.Parameter(torch.zeros(()))
        scales = torch.tensor([0.0, 1.0, 1.0])
        self.register_buffer("scales", scales.repeat(config.steps, 1))

    def precondition(self, alphas_cumprod: Tensor, deviation: float = 0.5) -> None:
        """Set skip, out and in for velocity prediction of data with root mean square ``deviation``.

        With signal a, sigma s and x = a x0 + s noise, v = a noise - s x0: skip is the least squares
        estimate of v from x, out the deviation of its error, in 1 / deviation of x.

        Args:
            alphas_cumprod: (steps,), of the schedule.
            deviation: root mean square of the standardised channels.
        """
        a2 = alphas_cumprod.double()
        power = a2 * deviation**2 + (1 - a2)
        skip = torch.sqrt(a2 * (1 - a2)) * (1 - deviation**2) / power
        out = deviation / torch.sqrt(power)
        self.scales.copy_(torch.stack([skip, out, 1 / torch.sqrt(power)], dim=1).float())

    @property
    def multiple(self) -> int:
        """Height and width must be divisible by this number of pixels."""
        return self.config.patch << (len(self.config.widths) - 1)

    @torch.no_grad()
    def normalize_weights(self) -> None:
        """Forced weight normalisation: call after every optimizer step (EDM2, section 2.3)."""
        for module in self.modules():
            if isinstance(module, MPConv):
                module.weight.copy_(normalize_weight(module.weight))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        embedding = self.embedding(timestep)
        scales = self.scales[timestep.long()][:, :, None, None, None]
        h = F.pixel_unshuffle(x * scales[:, 2], self.config.patch)
        h = self.stem(torch.cat([h, torch.ones_like(h[:, :1])], dim=1))
        skips = []
        for i, level in enumerate(self.encoder):
            if i > 0:
                h = F.avg_pool2d(h, 2)
            h = level(h, embedding)
            skips.append(h)
        skips.pop()
        for i, level in enumerate(self.decoder):
            if i > 0:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
                h = mp_cat(h, skips.pop())
            h = level(h, embedding)
        h = self.head(mp_silu(h)) * self.head_gain
        return x * scales[:, 0] + F.pixel_shuffle(h.float(), self.config.patch) * scales[:, 1]


def deepen(weights: Mapping[str, Tensor], network: Denoiser) -> dict[str, Tensor]:
    """The weights of a trained denoiser for one with a coarser level more.

    The new level starts as ``network`` has it, and what it adds to the level above with weight 0:
    the prediction stays the same where both levels are equally wide. Where they are not, features
    of the level above are scaled a little differently (:func:`mp_cat_factors`).

    Args:
        weights: of a denoiser whose ``widths`` lack the last of ``network``'s.
        network: whose state is not changed.

    Returns:
        A state that ``network`` loads.
    """
    *_, width, coarsest = network.config.widths
    state = dict(network.state_dict())
    for key, value in weights.items():
        part, _, rest = key.partition(".")
        if part == "decoder":
            level, _, rest = rest.partition(".")
            key = f"decoder.{int(level) + 1}.{rest}"
        state[key] = value
    # The first block of the level above sees the new level's features, then its own.
    conv, skip = (f"decoder.1.0.{name}.weight" for name in ("conv1", "skip"))
    own = state[conv]
    state[conv] = torch.cat([own.new_zeros(width, coarsest, *own.shape[2:]), own], dim=1)
    same = torch.cat([torch.zeros(width, coarsest), torch.eye(width)], dim=1)
    state[skip] = normalize_weight(same)[:, :, None, None]
    return state
