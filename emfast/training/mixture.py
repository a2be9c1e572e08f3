"""Training data from several sources, such as real slices and a synthetic set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emfast.data.image import Grey
from emfast.data.stack import Stack
from emfast.data.tiles import PAPER_SIZE, cut_tiles, paper_windows
from emfast.training.batches import Crops, random_crops
from engines.errors import UserError


@dataclass(frozen=True)
class Source:
    """One source of a mixture.

    Attributes:
        stack: images of one size, with masks.
        share: of the crops that come from it, above 0 and up to 1; None for all sources: each in
            proportion to its pixels.
        tiles: whether the images are crops of slices that are not there, as those of a synthetic
            set (``read_stack(SET)``) are. Their greys are normalised with the statistics of all of
            them, where a real crop has those of its whole slice.
    """

    stack: Stack
    share: float | None = None
    tiles: bool = False


@dataclass(frozen=True)
class Mixture:
    """Several sources to train on.

    Where training takes random crops, each crop's source is drawn by the shares, and then a place
    in it. Where it passes over the paper's fixed tiles, every tile is seen once an epoch, and
    images of their size are tiles already; there are no shares then.

    Raises:
        UserError: no source, or shares that do not add up to 1.
    """

    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("a mixture of no sources; give at least one stack")
        shares = [source.share for source in self.sources]
        if all(share is None for share in shares):
            return
        numbers = [share for share in shares if share is not None]
        if (
            len(numbers) < len(shares)
            or not all(share > 0 for share in numbers)
            or not math.isclose(sum(numbers), 1, abs_tol=1e-6)
        ):
            raise UserError(
                f"shares {', '.join(map(str, shares))} of a mixture: give every source one above "
                "0, together 1, or none"
            )


class Pool:
    """The images of all sources, from which batches are cut.

    Args:
        data: one stack or several sources.
        tiles: whether stacks are cut into the paper's tiles.

    Raises:
        UserError: no masks, or shares together with the paper's tiles.
    """

    def __init__(self, data: Stack | Mixture, tiles: bool) -> None:
        sources = (Source(data),) if isinstance(data, Stack) else data.sources
        if tiles:
            if sources[0].share is not None:
                raise UserError(
                    "a preset that passes over the paper's tiles sees each once an epoch and takes "
                    "no shares"
                )
            sources = (Source(_join([paper_tiles(source.stack) for source in sources])),)
        self._images = [source.stack.images for source in sources]
        self._masks = [source.stack.labels() for source in sources]
        self._mean, self._deviation = [], []
        for source in sources:
            mean, deviation = _statistics(source)
            self._mean.append(mean)
            self._deviation.append(np.maximum(deviation, 1.0))
        sizes = np.array([images.size for images in self._images], dtype=np.float64)
        given = [source.share for source in sources]
        self._shares = sizes / sizes.sum() if given[0] is None else np.array(given, np.float64)

    def __len__(self) -> int:
        """Number of images."""
        return sum(len(images) for images in self._images)

    def crops(self, side: int, batch: int, rng: np.random.Generator) -> Crops:
        """Random crops, flipped and turned; ``slices`` numbers the images of all sources.

        Arguments and errors as for :func:`~emfast.training.batches.random_crops`.
        """
        if len(self._images) == 1:
            return random_crops(self._images[0], self._masks[0], side, batch, rng, range(8))
        chosen = rng.choice(len(self._images), size=batch, p=self._shares / self._shares.sum())
        parts, first = [], 0
        for number, (images, masks) in enumerate(zip(self._images, self._masks, strict=True)):
            count = int((chosen == number).sum())
            if count:
                part = random_crops(images, masks, side, count, rng, range(8))
                parts.append(part._replace(slices=part.slices + first))
            first += len(images)
        return Crops(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def take(self, indices: npt.NDArray[np.intp]) -> tuple[Grey, Grey]:
        """Whole tiles and their masks."""
        return self._images[0][indices], self._masks[0][indices]

    def statistics(
        self, slices: npt.NDArray[np.intp]
    ) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
        """Mean and deviation of the greys that crops of these images are normalised with."""
        return np.concatenate(self._mean)[slices], np.concatenate(self._deviation)[slices]


def paper_tiles(stack: Stack) -> Stack:
    """The paper's tiles of a stack; a stack of images of their size is tiles already."""
    height, width = stack.images.shape[1:]
    if (height, width) == (PAPER_SIZE, PAPER_SIZE):
        return stack
    return cut_tiles(stack, paper_windows(height, width)).stack()


def _join(stacks: Sequence[Stack]) -> Stack:
    """Stacks of images of one size as one."""
    if len(stacks) == 1:
        return stacks[0]
    return Stack(
        np.concatenate([stack.images for stack in stacks]),
        np.concatenate([stack.labels() for stack in stacks]),
        tuple(f"{number}/{name}" for number, s in enumerate(stacks) for name in s.names),
        " and ".join(stack.source for stack in stacks),
    )


def _statistics(source: Source) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and deviation of each image's greys, or for tiles of all of them, for each."""
    images = source.stack.images
    # One by one: the deviation of all at once needs eight times their memory.
    mean = np.array([image.mean() for image in images])
    deviation = np.array([image.std() for image in images])
    if source.tiles:
        # Of all pixels, from the images' own.
        total = float(mean.mean())
        spread = math.sqrt(float((deviation**2 + (mean - total) ** 2).mean()))
        return np.full(len(images), total), np.full(len(images), spread)
    return mean, deviation
