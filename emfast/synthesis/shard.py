"""One of several runs that share the images of a set."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from engines.errors import UserError


@dataclass(frozen=True)
class Shard:
    """Shard ``number`` of ``count``; by default the only one.

    Attributes:
        number: from 1.
        count: of shards that share the set.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UserError(
                f"shard {self.number}/{self.count}: shards of {self.count} are numbered from 1 "
                f"to {self.count}"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """A shard from "3/16"; :class:`UserError` for another text."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise UserError(f"shard {text!r}: give its number and their count, as in 3/16")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}-of-{self.count}"

    def owned(self, images: int, block: int) -> npt.NDArray[np.bool_]:
        """Which images this shard draws.

        Blocks go round the shards, so that a set that grows leaves every image with its shard.

        Args:
            images: of the whole set.
            block: images in a row that stay together.

        Returns:
            bool (images,).
        """
        owners = np.arange(images) // block % self.count
        return np.equal(owners, self.number - 1)
