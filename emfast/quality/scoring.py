"""Scoring files of predicted masks against files of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emfast.data.image import TIFF_SUFFIXES, size_text, to_mask
from emfast.data.slices import Slices, open_slices
from emfast.data.split import parse_slices, slice_ranges
from emfast.data.stack import find_sources, list_images
from emfast.progress import progress
from emfast.quality.overlap import Confusion, confusion
from engines.errors import UserError


@dataclass(frozen=True)
class Scores:
    """Scores of the slices that have both a prediction and a label.

    Attributes:
        predictions: file or folder of the predicted masks.
        labels: file or folder of the labels.
        slices: numbers of the scored slices in the longer of the two, as in 140-164.
        per_slice: name and counts of each scored slice.
        unlabelled: number of predicted slices among those asked for that have no label.
    """

    predictions: Path
    labels: Path
    slices: str
    per_slice: tuple[tuple[str, Confusion], ...]
    unlabelled: int

    @property
    def pooled(self) -> Confusion:
        """Counts over all pixels of all scored slices."""
        return sum((counts for _, counts in self.per_slice), Confusion())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "predictions": str(self.predictions),
            "labels": str(self.labels),
            "slices": self.slices,
            "scored": len(self.per_slice),
            "unlabelled": self.unlabelled,
            "pooled": self.pooled.to_dict(),
            "per_slice": [{"slice": name, **counts.to_dict()} for name, counts in self.per_slice],
        }


@dataclass(frozen=True)
class Pair:
    """One slice to score: its name, its number, and its index on either side."""

    name: str
    number: int
    prediction: int
    label: int


def score_files(predictions: Path, labels: Path, slices: str | None = None) -> Scores:
    """Score predicted masks against labels, slice by slice.

    Slices are matched by name. Where one side is a TIFF or a single image and no name is common,
    they are matched in order if there are equally many.

    Args:
        predictions, labels: each a folder of masks, a multi-page TIFF, a single image, or a folder
            that holds them beside their images or in ``masks/``. Labels may cover a part of the
            predictions.
        slices: numbers of the slices to score, as in 140-164, in the longer of the two; all
            labelled ones by default.

    Raises:
        UserError: unreadable files, masks with more than one value besides 0, labels without a
            prediction, or sizes that differ.
    """
    predictions, labels = find_masks(predictions), find_masks(labels)
    scored = []
    with open_slices(predictions) as predicted, open_slices(labels) as labelled:
        ordered = _match_in_order(predictions, labels, predicted, labelled)
        label_names = predicted.names if ordered else labelled.names
        pairs, unlabelled = _pair(predictions, labels, predicted.names, label_names, slices)
        with progress("evaluate", len(pairs)) as advance:
            for pair in pairs:
                scored.append((pair.name, _score(pair, predictions, labels, predicted, labelled)))
                advance()
    numbers = slice_ranges(sorted(pair.number for pair in pairs))
    return Scores(predictions, labels, numbers, tuple(scored), unlabelled)


def find_masks(source: Path) -> Path:
    """The masks of ``source``: beside its images, in ``masks/``, a lone TIFF in it, or itself."""
    if not source.is_dir():
        return source
    masks = find_sources(source)[1]
    if masks is None:
        masks = source / "masks" if (source / "masks").is_dir() else source
    if masks.is_dir():
        files = list_images(masks)
        if len(files) == 1 and files[0].suffix.lower() in TIFF_SUFFIXES:
            return files[0]
    return masks


def _match_in_order(predictions: Path, labels: Path, predicted: Slices, labelled: Slices) -> bool:
    """Whether slices are matched in order, because their names cannot tell."""
    by_name = set(predicted.names) & set(labelled.names) or (
        predictions.is_dir() and labels.is_dir()
    )
    if by_name:
        return False
    if len(predicted) != len(labelled):
        raise UserError(
            f"{predictions} has {len(predicted)} slices and {labels} has {len(labelled)}, and no "
            "name is common; give equally many, or folders with the same file names"
        )
    return True


def _pair(
    predictions: Path,
    labels: Path,
    predicted: Sequence[str],
    labelled: Sequence[str],
    slices: str | None,
) -> tuple[list[Pair], int]:
    """Pair names, and count the predicted slices among those asked for that have no label."""
    numbered = labelled if len(labelled) > len(predicted) else predicted
    numbers = {name: number for number, name in enumerate(numbered)}
    if slices is None:
        wanted = [*predicted, *(name for name in labelled if name not in set(predicted))]
    else:
        wanted = [numbered[number] for number in parse_slices(slices, len(numbered))]
    prediction_index = {name: i for i, name in enumerate(predicted)}
    label_index = {name: i for i, name in enumerate(labelled)}
    chosen = [name for name in wanted if name in label_index]
    if prediction_index.keys().isdisjoint(label_index):
        raise UserError(
            f"{predictions} and {labels}: slices are matched by name, and none is in both; the "
            f"first is {predicted[0]} there and {labelled[0]} here. Rename one side's files"
        )
    if not chosen:
        raise UserError(f"{labels}: has no label for any of the slices of {predictions} asked for")
    missing = [name for name in chosen if name not in prediction_index]
    if missing:
        raise UserError(
            f"{predictions}: no prediction for {missing[0]}, which {labels} has; predict it too, "
            "or choose slices, as in --slices 140-164"
        )
    pairs = [Pair(n, numbers[n], prediction_index[n], label_index[n]) for n in chosen]
    return pairs, len(wanted) - len(chosen)


def _score(
    pair: Pair, predictions: Path, labels: Path, predicted: Slices, labelled: Slices
) -> Confusion:
    prediction = to_mask(predicted.read(pair.prediction), f"{predictions}, slice {pair.name}")
    label = to_mask(labelled.read(pair.label), f"{labels}, slice {pair.name}")
    if prediction.shape != label.shape:
        raise UserError(
            f"slice {pair.name}: the prediction is {size_text(prediction)} pixels, but its label "
            f"is {size_text(label)}"
        )
    return confusion(prediction, label)
