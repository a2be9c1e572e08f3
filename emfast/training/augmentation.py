"""Augmentation of segmenter crops, on the device that trains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ELASTIC_POINTS = 5


@dataclass(frozen=True)
class Augmentation:
    """Largest change of each kind; every crop draws its own, evenly up to it.

    Attributes:
        rotation: in degrees, either way.
        shift: as a share of the crop's side.
        zoom: as a share of the scale, in or out.
        noise: standard deviation of added Gaussian noise, in normalised greys.
        contrast: as a share, more or less.
        brightness: in normalised greys, either way.
        blur: share of the pixel that is taken from the mean of its 3 x 3 neighbours; half of the
            crops get none.
        elastic: standard deviation, in pixels, of the displacements of a 5 x 5 grid of points over
            the crop, between which a bicubic spline bends it (U-Net, arXiv 1505.04597, section
            3.1, has 10 pixels on a 3 x 3 grid).
    """

    rotation: float
    shift: float
    zoom: float
    noise: float
    contrast: float
    brightness: float
    blur: float
    elastic: float


AUGMENTATIONS = {
    # The seed group's; its noise level is not published, 2 % of the grey range is ours.
    "paper": Augmentation(7, 0.05, 0.10, 0.02, 0.0, 0.0, 0.0, 0.0),
    "elastic": Augmentation(20, 0.0, 0.15, 0.2, 0.2, 0.2, 0.6, 6.0),
}


def augment(
    x: Tensor, target: Tensor, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Turn, shift, zoom and bend images and masks alike; change the greys of the images.

    Args:
        x: float32 (batch, 1, side, side), normalised greys.
        target: float32 (batch, classes, side, side), 0 or 1.
        augmentation: how much.
        rng: source of all choices.

    Returns:
        Both in the same shapes; beyond the crop's edge its mirror image is seen.
    """
    a, batch = augmentation, len(x)

    def draw(largest: float) -> Tensor:
        values = rng.uniform(-largest, largest, size=batch).astype(np.float32)
        return torch.from_numpy(values).to(x.device)

    angle, scale = draw(math.radians(a.rotation)), 1 + draw(a.zoom)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # A shift of the whole side is 2 in the grid's coordinates.
    rows = torch.stack([cos, -sin, draw(2 * a.shift), sin, cos, draw(2 * a.shift)], dim=1)
    size = [batch, 1, *x.shape[2:]]
    grid = F.affine_grid(rows.view(batch, 2, 3), size, align_corners=False)
    if a.elastic:
        points = (batch, 2, ELASTIC_POINTS, ELASTIC_POINTS)
        moves = torch.from_numpy(rng.standard_normal(points, dtype=np.float32)).to(x.device)
        moves = moves * draw(a.elastic).abs().view(batch, 1, 1, 1) * (2 / x.shape[-1])
        field = F.interpolate(moves, size=x.shape[2:], mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    target = F.grid_sample(
        target, grid, mode="nearest", padding_mode="reflection", align_corners=False
    )
    column = (batch, 1, 1, 1)
    if a.blur:
        smooth = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
        x = torch.lerp(x, smooth, draw(a.blur).clamp(min=0).view(column))
    x = x * (1 + draw(a.contrast)).view(column) + draw(a.brightness).view(column)
    noise = torch.from_numpy(rng.standard_normal(tuple(x.shape), dtype=np.float32)).to(x.device)
    return x + noise * draw(a.noise).abs().view(column), target
