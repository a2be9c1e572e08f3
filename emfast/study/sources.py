"""The synthetic sets of a row: its denoiser, what that draws, and the selection of it.

Everything here is made of the row's own slices: the denoiser and the segmenter that selects are
trained on them, and they are the real tiles that the selection compares with.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emfast.data.stack import Stack, read_stack
from emfast.exports import export_checkpoint
from emfast.selection import Repair
from emfast.selection.select import decide, open_selector
from emfast.selection.source import Source
from emfast.study.parts import Parts, write_slices
from emfast.study.record import stage
from emfast.study.settings import StudySettings
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Job, run_job
from emfast.training.denoiser import train_denoiser
from engines.bundle import open_bundle
from export.bundle import export_bundle

DENOISER, DRAWN, SELECTION = "denoiser", "drawn", "selection"


@dataclass(frozen=True)
class Machine:
    """What a study runs on; it may change from one stage to the next.

    Attributes:
        device: that trains, "cpu" or "cuda".
        engine: that draws and selects, as for :func:`engines.selection.open_engine`.
        threads: of the CPU.
    """

    device: str
    engine: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Sets:
    """The slices and the synthetic sets that some seeds of a row share.

    Attributes:
        settings: of the study.
        parts: of the stack.
        row: "all" or a number of slices.
        seed: of the denoiser, the set and, where seeds have their own, the slices.
        folder: of all that is made here.
        machine: that runs.
        selector: trains the real-only segmenter of this row and seed, if need be, and gives its
            run's folder.
    """

    settings: StudySettings
    parts: Parts
    row: str
    seed: int
    folder: Path
    machine: Machine
    selector: Callable[[], Path]

    @property
    def slices(self) -> tuple[int, ...]:
        """Numbers of the slices that may be seen."""
        return self.parts.row(self.row, self.seed if self.settings.redraw else None)

    @property
    def real(self) -> Stack:
        """Those slices with their masks."""
        return self.parts.stack.select(self.slices)

    def facts(self) -> dict[str, Any]:
        """What a run is trained on, for its checkpoint."""
        names = [self.parts.stack.names[i] for i in self.slices]
        return {"slices": names, "size": list(self.parts.stack.images.shape[1:])}

    def result(self, name: str) -> Path:
        """File of a stage's result."""
        return self.folder / f"{name}.json"

    def train(self) -> dict[str, Any]:
        """Train the denoiser and export it."""
        return stage(self.result(DENOISER), self._train)

    def draw(self) -> dict[str, Any]:
        """Draw the set."""
        self.train()
        return stage(self.result(DRAWN), self._draw)

    def select(self) -> dict[str, Any]:
        """Select from the set."""
        self.draw()
        return stage(self.result(SELECTION), self._select)

    def drawn(self) -> Stack:
        """The images of the set."""
        self.draw()
        return read_stack(self.folder / DRAWN)

    def selected(self) -> Stack | None:
        """Those that were selected; None where they are too few to train on."""
        enough = self.select()["enough"]
        return read_stack(self.folder / "selected") if enough else None

    def _train(self) -> dict[str, Any]:
        settings = replace(self.settings.denoiser, seed=self.seed)
        run, device = self.folder / "denoiser", self.machine.device
        trainer = train_denoiser(settings, self.real, self.facts(), run, device)
        start = time.monotonic()
        self._export(run, self.folder / "denoiser-bundle")
        return {
            "seconds": trainer.seconds + time.monotonic() - start,
            "iterations": trainer.iteration,
            "slices": self.facts()["slices"],
            "hardware": trainer.hardware(),
        }

    def _export(self, run: Path, bundle: Path) -> None:
        """Export a run to FP32, unless that was done already; verified on the row's slices."""
        if bundle.exists():
            open_bundle(bundle)
            return
        for killed in bundle.parent.glob(f".{bundle.name}.*.tmp"):
            shutil.rmtree(killed)
        name = f"study, row {self.row}, seed {self.seed}"
        steps = self.settings.export_steps
        export_bundle(export_checkpoint(run, name, self.real, {}, steps), bundle, ("fp32",))

    def _draw(self) -> dict[str, Any]:
        s, machine = self.settings, self.machine
        with Generator.open(
            self.folder / "denoiser-bundle", machine.engine, "fp32", machine.threads, s.batch
        ) as generator:
            job = Job(s.images, self.seed, s.steps, generator.spec.size, s.batch, False, s.sampler)
            generated = run_job(job, generator, self.folder / DRAWN)
            return {
                "seconds": generated.seconds,
                "images": s.images,
                "engine": str(generator.engine.info),
            }

    def _select(self) -> dict[str, Any]:
        bundle, real = self.folder / "segmenter-bundle", self.folder / "slices"
        out = self.folder / "selected"
        self._export(self.selector(), bundle)
        if not real.exists():
            write_slices(self.parts.stack, self.slices, real)
        source, repair = Source(self.folder / DRAWN), Repair() if self.settings.repair else None
        with open_selector(
            real, source.side, bundle, self.machine.engine, "fp32", self.machine.threads
        ) as selector:
            ledger, limits, _ = selector.score(source)
            decided = decide(source, ledger, self.settings.rules, limits, repair)
            kept = int(decided.choice.kept.sum())
            enough = kept >= self.settings.least
            if enough and not out.exists():
                selector.select(source, out, self.settings.rules, repair)
            return {
                "drawn": self.settings.images,
                "kept": kept,
                "enough": enough,
                "engine": selector.judge.engine,
            }
