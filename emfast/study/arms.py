"""One cell of the table: a segmenter trained on what its arm may see, scored on the test slices."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from emfast.data.stack import Stack
from emfast.study.record import read_result, stage
from emfast.study.settings import (
    REAL,
    SELECTED,
    SYNTHETIC,
    UNSELECTED,
)
from emfast.study.sources import Sets
from emfast.training.mixture import Mixture, Source
from emfast.training.segmenter import load_segmenter, score_segmenter, train_segmenter
from emfast.training.trainer import Trainer

RESULT = "result.json"
# Runs of an arm that trains in two parts: on synthetic images, then on real ones.
FIRST, SECOND = "1-synthetic", "2-real"


@dataclass(frozen=True)
class Cell:
    """A row, a seed and an arm.

    Attributes:
        sets: of the row, shared by its seeds or this seed's own.
        seed: of the segmenter: its first weights, batches, augmentation and dropout.
        arm: of :data:`~emfast.study.settings.ARMS`.
        folder: of its run.
    """

    sets: Sets
    seed: int
    arm: str
    folder: Path

    def run(self) -> dict[str, Any]:
        """Train and score, or read what an earlier run found.

        Returns:
            Dice, IoU and pixel counts pooled over the test slices, or why there are none.
        """
        return stage(self.folder / RESULT, self._run)

    def train_real(self) -> Path:
        """Train the arm "real", if need be; returns the folder of its run."""
        run = self.folder / "run"
        if read_result(self.folder / RESULT) is None:
            self._train(run, self.sets.real)
        return run

    def _run(self) -> dict[str, Any]:
        sets = self.sets
        synthetic = None
        if self.arm == SELECTED:
            synthetic = sets.selected()
            if synthetic is None:
                kept = sets.select()
                return {
                    "not_possible": f"the selection kept {kept['kept']} of {kept['drawn']} images"
                }
        elif self.arm != REAL:
            synthetic = sets.drawn()
        run = self.folder / "run"
        if self.arm == REAL or synthetic is None:
            trainers = [self._train(run, sets.real)]
        elif self.arm in (UNSELECTED, SELECTED):
            trainers = [self._train(run, self._mixed(synthetic))]
        elif self.arm == SYNTHETIC:
            trainers = [self._train(run, Mixture((Source(synthetic, tiles=True),)))]
        else:
            trainers = self._train_twice(synthetic)
        return self._score(trainers, 0 if synthetic is None else len(synthetic))

    def _mixed(self, synthetic: Stack) -> Mixture:
        share = self.sets.settings.share
        real = None if share is None else 1 - share
        return Mixture((Source(self.sets.real, real), Source(synthetic, share, tiles=True)))

    def _train_twice(self, synthetic: Stack) -> list[Trainer]:
        total = self.sets.settings.segmenter.iterations
        first = max(1, round(total * self.sets.settings.pretraining))
        images = Mixture((Source(synthetic, tiles=True),))
        runs = self.folder / FIRST, self.folder / SECOND
        return [
            self._train(runs[0], images, first),
            self._train(runs[1], self.sets.real, total - first, runs[0]),
        ]

    def _train(
        self,
        folder: Path,
        stack: Stack | Mixture,
        iterations: int | None = None,
        initial: Path | None = None,
    ) -> Trainer:
        # Without slices to validate on: the last weights count, whatever they score.
        settings = replace(
            self.sets.settings.segmenter.override(iterations=iterations), seed=self.seed
        )
        facts = {**self.sets.facts(), "arm": self.arm}
        device = self.sets.machine.device
        return train_segmenter(settings, stack, None, facts, folder, device, initial)

    def _score(self, trainers: list[Trainer], synthetic: int) -> dict[str, Any]:
        start, last = time.monotonic(), trainers[-1]
        network, spec = load_segmenter(last.folder)
        device = torch.device(self.sets.machine.device)
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        tested = self.sets.parts.stack.select(self.sets.parts.test)
        scores = score_segmenter(network, spec, network.multiple, tested, device)
        return {
            **scores.to_dict(),
            "iterations": sum(t.iteration for t in trainers),
            "seconds": sum(t.seconds for t in trainers) + time.monotonic() - start,
            "real_slices": 0 if self.arm == SYNTHETIC else len(self.sets.slices),
            "synthetic_images": synthetic,
            "hardware": last.hardware(),
        }
