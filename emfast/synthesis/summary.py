"""What the card of a set says of all its images, gathered line by line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from emfast.quality.image_scores import SCORES


@dataclass
class Summary:
    """Sums over the lines of a manifest.

    Attributes:
        images: number of lines.
        empty: images without any object.
        sums, squares: of each of :data:`~emfast.quality.image_scores.SCORES`, and of its square.
        ran: engine, runtime, precision and device of the images, each combination once.
        first: numbers of the first images.
    """

    images: int = 0
    empty: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SCORES, 0.0))
    squares: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SCORES, 0.0))
    ran: dict[tuple[str, str, str, str], None] = field(default_factory=dict)
    first: list[int] = field(default_factory=list)

    def add(self, entry: dict[str, Any], shown: int) -> None:
        """Count one line; the numbers of the first ``shown`` are kept."""
        self.images += 1
        if len(self.first) < shown:
            self.first.append(entry["index"])
        self.ran[entry["engine"], entry["runtime"], entry["precision"], entry["device"]] = None
        self.empty += entry["scores"]["components"] == 0
        for name in SCORES:
            value = entry["scores"][name]
            self.sums[name] += value
            self.squares[name] += value * value

    def mean(self, name: str) -> float:
        """Mean of a score over the images."""
        return self.sums[name] / self.images

    def deviation(self, name: str) -> float:
        """Standard deviation of a score over the images."""
        mean = self.mean(name)
        return math.sqrt(max(self.squares[name] / self.images - mean * mean, 0.0))
