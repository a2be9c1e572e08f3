"""Batches of image and mask crops, each a function of (seed, iteration) alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from emfast.data.tiles import random_place
from engines.errors import UserError

Uint8 = npt.NDArray[np.uint8]

# Philox counter words that keep the streams of a run apart.
CROPS, ORDER, AUGMENTATION, TIMESTEPS = range(4)


class Crops(NamedTuple):
    """Square crops.

    Attributes:
        images, masks: uint8 (batch, side, side).
        slices: index of the slice that each crop comes from, int (batch,).
    """

    images: Uint8
    masks: Uint8
    slices: npt.NDArray[np.intp]


def generator(seed: int, iteration: int, stream: int) -> np.random.Generator:
    """The random numbers of one iteration: a resumed run draws what the killed one would have."""
    return np.random.Generator(
        np.random.Philox(key=np.array([seed, stream], np.uint64), counter=[0, 0, iteration, 0])
    )


def random_crops(
    images: Uint8,
    masks: Uint8,
    side: int,
    batch: int,
    rng: np.random.Generator,
    symmetries: Sequence[int],
) -> Crops:
    """Square crops at random places of random slices: :func:`emfast.data.tiles.random_place`.

    Args:
        images: uint8 (slices, height, width).
        masks: uint8, same shape.
        side: of the crops, in pixels.
        batch: number of crops.
        rng: source of all choices.
        symmetries: numbers of :func:`flip_turn`, of which each crop gets one.

    Raises:
        UserError: the slices are smaller than the crops.
    """
    count, height, width = images.shape
    if side > min(height, width):
        raise UserError(
            f"slices of {width} x {height} pixels are smaller than the training crops of "
            f"{side} x {side}; --crop takes smaller ones"
        )
    crops = np.empty((2, batch, side, side), dtype=np.uint8)
    slices = np.empty(batch, dtype=np.intp)
    for i in range(batch):
        slices[i] = z = rng.integers(count)
        y, x = (random_place(length, side, rng) for length in (height, width))
        symmetry = symmetries[int(rng.integers(len(symmetries)))]
        for target, source in zip(crops, (images, masks), strict=True):
            target[i] = flip_turn(source[z, y : y + side, x : x + side], symmetry)
    return Crops(crops[0], crops[1], slices)


def flip_turn(image: Uint8, symmetry: int) -> Uint8:
    """One of the 8 symmetries of the square, by its number."""
    turned = np.rot90(image, symmetry % 4)
    return turned[:, ::-1] if symmetry >= 4 else turned


def epoch_batch(count: int, batch: int, seed: int, iteration: int) -> npt.NDArray[np.intp]:
    """Which of ``count`` tiles an iteration sees: every tile once an epoch, in random order."""
    per_epoch = -(-count // batch)
    epoch, position = divmod(iteration, per_epoch)
    order = generator(seed, epoch, ORDER).permutation(count)
    return order[position * batch : (position + 1) * batch]
