"""What a study compares, and the settings of everything that it trains and draws."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from emfast.selection.rules import Rules
from emfast.training.presets import (
    DENOISER_PRESETS,
    SEGMENTER_PRESETS,
    DenoiserSettings,
    SegmenterSettings,
)
from engines.errors import UserError

REAL, UNSELECTED, SELECTED, SYNTHETIC, PRETRAINED = (
    "real",
    "unselected",
    "selected",
    "synthetic",
    "pretrained",
)
# What each arm trains on, in the table's words.
ARMS = {
    REAL: "real",
    UNSELECTED: "real + unselected synthetic",
    SELECTED: "real + selected synthetic",
    SYNTHETIC: "synthetic only",
    PRETRAINED: "synthetic, then real",
}
ALL = "all"
# Real slices of each row.
ROWS = (ALL, "10", "5", "2", "1")

# The 42 slices of the EPFL training stack that the paper's group labelled and trained on; of its
# 1722 real tiles each slice gives 41.
PAPER_SLICES = "0-3,13-17,24,28,42-48,54,61-63,74-76,89-91,104-106,118-120,127,134-136,161-164"
# The longest block of other slices that are all further than GAP from those 42.
TEST_SLICES = "142-155"
GAP = 5

# The features by which emfast report and select judge come from a network that saw many labelled
# slices. A row must see none but its own, so that this rule is left out.
ANY_DISTANCE = 1e9


@dataclass(frozen=True)
class StudySettings:
    """Everything that decides a study's numbers, but for the data.

    Attributes:
        denoiser: of each denoiser's training.
        segmenter: of each arm's training; its iterations are those of every arm.
        images: synthetic images that each denoiser draws.
        sampler, steps, batch: of the drawing.
        share: of the crops that are synthetic where real and synthetic ones are mixed; None where
            the segmenter passes over fixed tiles, each once an epoch.
        pretraining: share of the iterations that "pretrained" spends on synthetic images.
        rules: of the selection.
        repair: whether the selection repairs masks.
        least: fewest selected images to train on; with fewer, the arm "selected" is not run.
        redraw: whether every seed has slices, a denoiser and a set of its own, so that the spread
            is that of the whole procedure; otherwise the seeds of a row share them, and the spread
            is that of training segmenters.
        export_steps: steps of the sampling that each exported denoiser is verified with.
        tested: most slices to score on, the first of those held out; None for all.
        smoke: whether the numbers mean nothing, and are labelled so.
    """

    denoiser: DenoiserSettings
    segmenter: SegmenterSettings
    images: int
    sampler: str
    steps: int
    batch: int
    share: float | None
    pretraining: float
    rules: Rules
    repair: bool
    least: int
    redraw: bool
    export_steps: int
    tested: int | None = None
    smoke: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


@dataclass(frozen=True)
class Extent:
    """The part of a study that a run works on.

    Attributes:
        rows: of :data:`ROWS`, or other numbers of slices.
        seeds: how many; they are numbered from 0.
        arms: of :data:`ARMS`.
    """

    rows: tuple[str, ...]
    seeds: int
    arms: tuple[str, ...] = tuple(ARMS)

    def __post_init__(self) -> None:
        for row in self.rows:
            if row != ALL and not (row.isascii() and row.isdigit() and int(row) > 0):
                raise UserError(f"row {row!r}: give {ALL} or a number of slices, as in 1,5,{ALL}")
        for arm in self.arms:
            if arm not in ARMS:
                raise UserError(f"unknown arm {arm!r}; accepted: {', '.join(ARMS)}")
        if not self.rows or not self.arms or self.seeds < 1:
            raise UserError("nothing to run: give at least one row, one arm and one seed")
        object.__setattr__(self, "rows", tuple(dict.fromkeys(self.rows)))
        # In the order in which they are told, each once.
        object.__setattr__(self, "arms", tuple(arm for arm in ARMS if arm in self.arms))


_RULES = Rules(distance=ANY_DISTANCE)

PRESETS = {
    # Our settings, sized for a day of one GPU.
    "default": StudySettings(
        denoiser=DENOISER_PRESETS["default"],
        segmenter=SEGMENTER_PRESETS["default"].override(iterations=4000, validate_every=4000),
        images=1000,
        sampler="ddpm",
        steps=700,
        batch=32,
        share=0.5,
        pretraining=0.5,
        rules=_RULES,
        repair=True,
        least=8,
        redraw=True,
        export_steps=100,
    ),
    # Sections 3 and 5 of the seed paper. Every arm and row gets the optimizer steps of 200 epochs
    # over the 1722 real tiles, and every denoiser those of 40.
    "paper": StudySettings(
        denoiser=DENOISER_PRESETS["paper"].override(iterations=4320),
        segmenter=SEGMENTER_PRESETS["paper"].override(iterations=49200, validate_every=49200),
        images=1000,
        sampler="ddpm",
        steps=700,
        batch=32,
        share=None,
        pretraining=0.5,
        rules=_RULES,
        repair=True,
        least=8,
        redraw=False,
        export_steps=100,
    ),
    # What two CPU cores finish: short trainings, few images and few sampling steps.
    "cpu": StudySettings(
        denoiser=DENOISER_PRESETS["default"].override(iterations=3000, sample_every=1000),
        segmenter=SEGMENTER_PRESETS["default"].override(
            crops=((256, 4),), iterations=400, validate_every=400
        ),
        images=128,
        sampler="dpm++",
        steps=100,
        batch=4,
        share=0.5,
        pretraining=0.5,
        rules=_RULES,
        repair=True,
        least=8,
        redraw=False,
        export_steps=20,
    ),
}

SMOKE = StudySettings(
    denoiser=DENOISER_PRESETS["default"].override(
        crops=((64, 2),), widths=(16, 16, 16), blocks=1, iterations=4, warmup=1, sample_every=1000
    ),
    segmenter=SEGMENTER_PRESETS["default"].override(
        crops=((64, 2),), iterations=4, warmup=1, validate_every=1000
    ),
    images=8,
    sampler="dpm++",
    steps=2,
    batch=4,
    share=0.5,
    pretraining=0.5,
    # Noise, which a few iterations draw, passes no rule that means anything.
    rules=Rules(
        agreement=0.0,
        disagreement=1.0,
        distance=ANY_DISTANCE,
        similarity=1.0,
        specks=4096,
        area=1.0,
        objects=4096,
        cut=4096,
        first=4,
    ),
    repair=True,
    least=2,
    redraw=False,
    export_steps=2,
    tested=1,
    smoke=True,
)

SEEDS = {"default": 5, "paper": 5, "cpu": 3}
SMOKE_EXTENT = Extent(("2", "1"), 2)


def study_preset(name: str, smoke: bool) -> tuple[StudySettings, Extent]:
    """Settings by their preset's name, and what is run where nobody says otherwise.

    Raises:
        UserError: no such preset, or a smoke run of one.
    """
    if smoke:
        if name != "default":
            raise UserError("--smoke has settings of its own; leave out --preset")
        return SMOKE, SMOKE_EXTENT
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; accepted: {', '.join(PRESETS)}")
    return PRESETS[name], Extent(ROWS, SEEDS[name])
