"""Scoring labelled images against real ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from emfast import __version__
from emfast.quality.features import FeatureNetwork
from emfast.quality.novelty import COARSE_SIDE, PlaceSearch
from emfast.quality.sets import LabelledSlices, open_labelled
from emfast.segmentation.segmenter import SHIPPED, Segmenter
from emfast.selection.reference import Limits, Reference, measure_reference
from emfast.selection.repair import Repair
from emfast.selection.scores import Scores, mask_scores, nearest, repairs
from engines.errors import UserError
from engines.onnxruntime import cpu_count

Uint8 = npt.NDArray[np.uint8]

# Images that the segmenter sees together.
BATCH = 4


class Judge:
    """Scores images of one size against real slices. A context manager, made by :meth:`open`.

    What takes time, such as searching the real slices, is prepared when the first image is scored.

    Attributes:
        passed_over: why better engines for the segmenter were not taken, one line each.
    """

    def __init__(
        self,
        real: LabelledSlices,
        side: int,
        network: FeatureNetwork,
        segmenter: Segmenter,
    ) -> None:
        """Judge square images of ``side`` pixels; see :meth:`open`."""
        if side < COARSE_SIDE:
            raise UserError(
                f"images of {side} x {side} pixels are too small to be judged; at least "
                f"{COARSE_SIDE} x {COARSE_SIDE}"
            )
        self._real, self._side = real, side
        self._network, self._segmenter = network, segmenter
        self.passed_over = segmenter.passed_over

    @classmethod
    @contextmanager
    def open(
        cls,
        real: Path,
        side: int,
        segmenter: str | Path = SHIPPED,
        engine: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> Iterator[Self]:
        """Open what images are judged by.

        Args:
            real: slices with masks, as :func:`~emfast.quality.sets.open_labelled` reads them.
            side: of the images, in pixels.
            segmenter: a shipped bundle or a folder, independent of the masks to judge.
            engine, precision, threads: of the segmenter.

        Raises:
            UserError: no such slices, bundle or engine.
        """
        with (
            open_labelled(real) as slices,
            FeatureNetwork.open(threads=threads) as network,
            Segmenter.open(segmenter, engine, precision, threads) as network_of_masks,
        ):
            judge = cls(slices, side, network, network_of_masks)
            try:
                yield judge
            finally:
                judge._close()

    @property
    def engine(self) -> str:
        """Engine, precision and device of the segmenter."""
        return str(self._segmenter.info)

    @cached_property
    def description(self) -> dict[str, Any]:
        """What decides the scores, JSON-ready."""
        info = self._segmenter.info
        return {
            "emfast": __version__,
            "side": self._side,
            "real": _describe(self._real),
            "segmenter": {
                "name": self._segmenter.bundle.manifest.name,
                "sha256": self._segmenter.bundle.sha256,
                "engine": info.engine,
                "precision": info.precision,
                "runtime": info.version,
            },
            "features": {"name": self._network.name, "sha256": self._network.sha256},
        }

    @property
    def limits(self) -> Limits:
        """What the real tiles set."""
        return self._reference.limits

    def score(
        self,
        indices: Sequence[int],
        hashes: Sequence[tuple[str, str]],
        images: Uint8,
        masks: Uint8,
    ) -> list[Scores]:
        """Score images.

        Args:
            indices: numbers of the images in their set.
            hashes: SHA-256 of the files of each image and its mask.
            images: uint8 (count, side, side), greys in [0, 255].
            masks: uint8 of that shape, 0 background and 1 object.
        """
        distances = self._reference.distance(self._network(images))
        seen = np.concatenate(
            [
                self._segmenter.segment(images[first : first + BATCH])
                for first in range(0, len(images), BATCH)
            ]
        )
        matches = self._search.find(images)

        def one(place: int) -> Scores:
            mask = masks[place]
            return Scores(
                index=indices[place],
                image=hashes[place][0],
                mask=hashes[place][1],
                distance=round(float(distances[place]), 6),
                nearest=nearest(matches[place], self._real.names),
                drawn=mask_scores(mask, seen[place]),
                repaired=repairs(mask, seen[place], Repair()),
            )

        with ThreadPoolExecutor(cpu_count()) as pool:
            return list(pool.map(one, range(len(images))))

    @cached_property
    def _search(self) -> PlaceSearch:
        return PlaceSearch(self._real.image, len(self._real), self._side)

    @cached_property
    def _reference(self) -> Reference:
        return measure_reference(self._real, self._side, self._network, self._search)

    def _close(self) -> None:
        if "_search" in self.__dict__:
            self._search.close()


def _describe(real: LabelledSlices) -> dict[str, Any]:
    """Which slices they are: their names and the SHA-256 of their files."""
    digest = hashlib.sha256()
    for file in real.files():
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return {
        "name": real.source.resolve().name,
        "slices": len(real),
        "first": real.names[0],
        "last": real.names[-1],
        "sha256": digest.hexdigest(),
    }
