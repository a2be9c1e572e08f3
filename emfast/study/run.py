"""Running a study: its cells in turn, each once, and the tables after each of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emfast.progress import duration
from emfast.study.arms import RESULT, Cell
from emfast.study.parts import Parts
from emfast.study.record import open_study, read_result
from emfast.study.report import write_report
from emfast.study.settings import ARMS, REAL, SELECTED, Extent, StudySettings
from emfast.study.sources import DENOISER, DRAWN, SELECTION, Machine, Sets

# Stages of a row before the arms that need them.
STAGES = (DENOISER, DRAWN, SELECTION)


@dataclass(frozen=True)
class Step:
    """One thing to do: a stage of a row's sets, or an arm.

    Attributes:
        kind: a stage of :data:`STAGES` or "arm"; steps of one kind take about as long.
        name: in words.
        result: file that is there when it is done.
        cell: to run, or whose sets the stage belongs to.
    """

    kind: str
    name: str
    result: Path
    cell: Cell

    def run(self) -> dict[str, Any]:
        """Do it, or read what it came to."""
        sets = self.cell.sets
        work = {DENOISER: sets.train, DRAWN: sets.draw, SELECTION: sets.select}
        return work.get(self.kind, self.cell.run)()


class Study:
    """A study in its folder.

    rows/ROW/sets/           denoiser, its bundle and its set, the selection and what selected
    rows/ROW/seed-S/ARM/     runs of a segmenter and result.json
    settings.json            settings and data; a folder with others is refused
    study.json, table.md, study.png

    Args:
        settings: of all that is trained and drawn.
        parts: of the stack.
        folder: new, empty, or of the same study.
        machine: that runs.
        command: that the report tells.

    Raises:
        UserError: the folder holds something else.
    """

    def __init__(
        self, settings: StudySettings, parts: Parts, folder: Path, machine: Machine, command: str
    ) -> None:
        parts = replace(parts, test=parts.test[: settings.tested])
        self.settings, self.parts, self.folder = settings, parts, folder
        self.machine, self.command = machine, command
        self.record = {"settings": settings.to_dict(), "data": parts.to_dict()}
        open_study(folder, self.record)

    def run(self, extent: Extent) -> Path:
        """Run a part of the study; what is done already is not done again.

        Args:
            extent: rows, seeds and arms.

        Returns:
            The table.

        Raises:
            UserError: more slices than there are, or what training, drawing and selecting raise.
                What was finished is kept.
        """
        for row in extent.rows:
            self.parts.row(row, None)
        steps = self.steps(extent)
        left = [step for step in steps if read_result(step.result) is None]
        print(f"{len(steps) - len(left)} of {len(steps)} steps are done already")
        for done, step in enumerate(left, len(steps) - len(left) + 1):
            print(f"[{done}/{len(steps)}] {step.name}", flush=True)
            start = time.monotonic()
            told = _told(step.run())
            took = duration(time.monotonic() - start)
            print(f"[{done}/{len(steps)}] {step.name}: {told}, {took}; {_left(steps)}", flush=True)
            self.report()
        return self.report()

    def report(self) -> Path:
        """Write the tables and the plot of all that is there."""
        return write_report(self.folder, self.record, self.command)

    def steps(self, extent: Extent) -> list[Step]:
        """What has to be done, in its order."""
        steps: dict[Path, Step] = {}
        for row in extent.rows:
            for seed in range(extent.seeds):
                cells = {arm: self.cell(row, seed, arm) for arm in ARMS}
                sets = cells[REAL].sets
                stages = STAGES if SELECTED in extent.arms else STAGES[:2]
                # What selects is the segmenter of the arm "real".
                selects = SELECTED in extent.arms and not self._shared(seed)
                order = [REAL] if REAL in extent.arms or selects else []
                if set(extent.arms) - {REAL}:
                    order += [*stages, *(arm for arm in extent.arms if arm != REAL)]
                for name in order:
                    if name in STAGES:
                        whose = f"row {row}" + (f", seed {seed}" if self.settings.redraw else "")
                        step = Step(name, f"{whose}: {name}", sets.result(name), cells[REAL])
                    else:
                        cell = cells[name]
                        title = f"row {row}, seed {seed}: {ARMS[name]}"
                        step = Step("arm", title, cell.folder / RESULT, cell)
                    steps.setdefault(step.result, step)
        return list(steps.values())

    def cell(self, row: str, seed: int, arm: str) -> Cell:
        """A cell of the table."""
        return Cell(self._sets(row, seed), seed, arm, self._folder(row, seed) / arm)

    def _shared(self, seed: int) -> bool:
        """Whether a seed takes the sets of the first one."""
        return seed > 0 and not self.settings.redraw

    def _folder(self, row: str, seed: int) -> Path:
        return self.folder / "rows" / row / f"seed-{seed}"

    def _sets(self, row: str, seed: int) -> Sets:
        owner = 0 if self._shared(seed) else seed
        redraw = self.settings.redraw
        folder = self._folder(row, seed) if redraw else self.folder / "rows" / row

        def selector() -> Path:
            return self.cell(row, owner, REAL).train_real()

        return Sets(self.settings, self.parts, row, owner, folder / "sets", self.machine, selector)


def _told(result: dict[str, Any]) -> str:
    """A step's result in a few words."""
    if "not_possible" in result:
        return f"not possible, {result['not_possible']}"
    if "dice" in result:
        return f"Dice {result['dice']:.4f}"
    if "kept" in result:
        return f"{result['kept']} of {result['drawn']} images kept"
    return f"{result['images']} images" if "images" in result else "done"


def _left(steps: list[Step]) -> str:
    """About how long the rest takes, from the steps of the same kinds that are done."""
    seconds: dict[str, list[float]] = {}
    rest: list[str] = []
    for step in steps:
        result = read_result(step.result)
        if result is None:
            rest.append(step.kind)
        else:
            seconds.setdefault(step.kind, []).append(result["seconds"])
    known = [sum(seconds[kind]) / len(seconds[kind]) for kind in rest if kind in seconds]
    if not rest:
        return "all done"
    text = f"about {duration(sum(known))} left"
    return text if len(known) == len(rest) else f"{text} and what was not timed yet"
