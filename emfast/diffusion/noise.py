"""Gaussian noise that depends on (seed, image, step) alone.

The random bits come from Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2,
3", SC11), a counter-based generator: any thread of any machine can compute any number without
those before it. So an image does not change with the batch, the shard or the engine that drew it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engines.errors import UserError

MAX_SEED = 2**64 - 1


def check_seed(seed: int) -> None:
    """:class:`UserError` for a seed outside [0, 2^64 - 1]."""
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed {seed} is outside [0, {MAX_SEED}]")


def normal_noise(
    seed: int,
    indices: Sequence[int],
    step: int,
    shape: Sequence[int],
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Standard normal noise for a batch of images at one step.

    Philox is keyed with (seed, 0) and counts (block, step, index, 0) with block from 1. Every
    64-bit word gives one pair by Box-Muller: u1 = (low half + 1/2) / 2^32, u2 = high half / 2^32;
    word k gives element k, sqrt(-2 ln u1) cos(2 pi u2), and element k + n/2, the same with sin.

    Args:
        seed: in [0, 2^64 - 1].
        indices: number of each image in the whole set, in [0, 2^64 - 1].
        step: the timestep that the noise is added at; the number of timesteps for the noise that
            sampling starts from.
        shape: of one image, with an even number n of elements.
        out: float32 (len(indices), *shape) to fill instead of a new array.

    Returns:
        float32 (len(indices), *shape).

    Raises:
        UserError: a seed outside its range or an odd number of elements.
    """
    check_seed(seed)
    size = math.prod(shape)
    if size % 2:
        raise UserError(f"noise of shape {tuple(shape)} has an odd number of elements")
    half = size // 2
    if out is None:
        out = np.empty((len(indices), *shape), dtype=np.float32)
    flat = out.reshape(len(indices), size)
    for row, index in zip(flat, indices, strict=True):
        generator = np.random.Philox(
            key=np.array([seed, 0], dtype=np.uint64),
            counter=np.array([0, step, index, 0], dtype=np.uint64),
        )
        words = generator.random_raw(half).view(np.uint32).reshape(half, 2)
        radius = words[:, 0].astype(np.float32)
        radius += np.float32(0.5)
        radius *= np.float32(2.0**-32)
        np.log(radius, out=radius)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        angle = words[:, 1].astype(np.float32)
        angle *= np.float32(2 * math.pi * 2.0**-32)
        np.cos(angle, out=row[:half])
        np.sin(angle, out=row[half:])
        row[:half] *= radius
        row[half:] *= radius
    return out
