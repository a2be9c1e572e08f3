"""Writing what was selected as a set of its own.

images/, masks/, pairs/   the kept files under the numbers that they had: hard links to those of
                          the set, copies where the file system has none, and new files for
                          repaired masks
job.json                  that of the set, and the command that selected
manifest.jsonl            lines of the kept images, with the scores that they were kept for
metadata.jsonl, README.md, contact.png   as of every set
selection.json            rules, how many images were kept, and how many not for which reason
rejected.jsonl            one line for each other image: its reasons and scores
accepted.png, rejected.png   examples, with scores and reasons
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from emfast.data.pairs import encode_pair
from emfast.quality.image_scores import image_scores
from emfast.selection.choice import Choice
from emfast.selection.ledger import Ledger
from emfast.selection.repair import Repair
from emfast.selection.rules import REASONS, Rules
from emfast.selection.scores import Repairs, Scores
from emfast.selection.sheets import SHOWN, captioned_sheet, share_places
from emfast.selection.source import Source, file_of, png
from emfast.selection.words import reason_text, scores_text
from emfast.synthesis.manifest import JOB, line
from emfast.synthesis.publication import publish

REJECTED = "rejected.jsonl"
ACCEPTED_SHEET, REJECTED_SHEET = "accepted.png", "rejected.png"


@dataclass(frozen=True)
class Decided:
    """A set, its scores and what follows from them.

    Attributes:
        source: the set.
        ledger: scores of its images.
        rules: with a number for every threshold.
        repair: of masks; None to keep them as they are.
        choice: which images are kept. Images of the set beyond its end are not looked at.
    """

    source: Source
    ledger: Ledger
    rules: Rules
    repair: Repair | None
    choice: Choice

    def images(self) -> Iterator[tuple[int, dict[str, Any], Scores]]:
        """Place, line of the manifest and scores of each image."""
        seen = islice(self.source.entries(), len(self.choice.kept))
        for place, (entry, scores) in enumerate(zip(seen, self.ledger, strict=False)):
            yield place, entry, scores

    def reasons(self, place: int, scores: Scores) -> tuple[str, ...]:
        """Why an image is not kept; none for one that is."""
        return self.choice.reasons(place, self.rules.failed(scores, self.repair is not None))

    def repairs(self, scores: Scores) -> Repairs | None:
        """What is repaired of an image's mask; None where nothing is."""
        return scores.repaired if self.repair is not None else None


@dataclass
class Tally:
    """Counts of a selection.

    Attributes:
        reasons: images that each reason of :data:`~emfast.selection.rules.REASONS` speaks against;
            one image may have several.
        alone: images that it alone speaks against.
        repaired: kept images whose masks are repaired.
        examples: places of the first rejected images, by their first reason.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    alone: Counter[str] = field(default_factory=Counter)
    repaired: int = 0
    examples: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, decided: Decided) -> Self:
        """Count the images of a set."""
        tally = cls()
        for place, _, scores in decided.images():
            if decided.choice.kept[place]:
                tally.repaired += decided.repairs(scores) is not None
            else:
                tally._reject(place, decided.reasons(place, scores))
        return tally

    def _reject(self, place: int, reasons: tuple[str, ...]) -> None:
        self.reasons.update(reasons)
        if len(reasons) == 1:
            self.alone.update(reasons)
        if len(self.examples[reasons[0]]) < SHOWN:
            self.examples[reasons[0]].append(place)


def write_set(folder: Path, decided: Decided, tally: Tally, selection: dict[str, Any]) -> None:
    """Write a selection, all but ``selection.json``.

    Args:
        folder: empty.
        decided: the set and which of its images are kept, at least one.
        tally: of them.
        selection: what ``job.json`` and the card tell of it.

    Raises:
        UserError: the disk is full, or a file of the set is missing or changed.
    """
    accepted = int(decided.choice.kept.sum())
    record = {**decided.source.record, "count": accepted, "selection": selection}
    for kind in ("images", "masks", "pairs") if record["pairs"] else ("images", "masks"):
        (folder / kind).mkdir()
    (folder / JOB).write_text(json.dumps(record, indent=1) + "\n")
    with (folder / REJECTED).open("wb") as rejected:
        publish(folder, record, _lines(folder, decided, rejected))
    places = np.flatnonzero(decided.choice.kept)
    spread = places[np.linspace(0, len(places) - 1, min(SHOWN, len(places))).astype(int)]
    _write_sheet(folder / ACCEPTED_SHEET, decided, spread.tolist())
    examples = [tally.examples[reason] for reason in REASONS if reason in tally.examples]
    if examples:
        _write_sheet(folder / REJECTED_SHEET, decided, share_places(examples))


def _lines(folder: Path, decided: Decided, rejected: IO[bytes]) -> Iterator[bytes]:
    """Lines of the new manifest, whose files are made on the way."""
    for place, entry, scores in decided.images():
        if decided.choice.kept[place]:
            yield line(_keep(folder, decided, entry, scores))
        else:
            reasons = decided.reasons(place, scores)
            told = {"index": entry["index"], "reasons": reasons, **_flat(scores, decided)}
            rejected.write(line(told))


def _keep(folder: Path, decided: Decided, entry: dict[str, Any], scores: Scores) -> dict[str, Any]:
    """Put the files of an image into the new set; returns its line of the manifest."""
    source = decided.source
    kept = {**entry, "files": dict(entry["files"]), "selection": _flat(scores, decided)}
    if decided.repair is not None and scores.repaired is not None:
        image, mask = source.image(entry), decided.repair(source.mask(entry)).mask
        pixels = {"masks": mask * np.uint8(255)}
        if any(name.startswith("pairs/") for name in entry["files"]):
            pixels["pairs"] = encode_pair(image, mask)
        for kind, array in pixels.items():
            name = file_of(entry, kind)
            data, kept["files"][name] = png(array)
            (folder / name).write_bytes(data)
        kept["scores"] = image_scores(image, mask)
    for name in entry["files"]:
        if kept["files"][name] == entry["files"][name]:
            _link(source.path / name, folder / name)
    return kept


def _flat(scores: Scores, decided: Decided) -> dict[str, Any]:
    """Scores of an image as the manifest holds them, the same names for every image of a set."""
    repairs = decided.repairs(scores)
    flat: dict[str, Any] = asdict(scores.of_mask(decided.repair is not None))
    # The share of object pixels and the specks at the border are in the image's own scores.
    flat = {
        "agreement": flat["agreement"],
        "disagreement": flat["disagreement"],
        "objects": flat["objects"],
        "objects_cut": flat["cut"],
        "inner_specks": flat["specks"],
        "feature_distance": scores.distance,
        "similarity": scores.nearest.similarity,
        "nearest_slice": scores.nearest.slice,
        "nearest_y": scores.nearest.y,
        "nearest_x": scores.nearest.x,
        "nearest_symmetry": scores.nearest.symmetry,
    }
    if decided.repair is not None:
        for name in ("specks_dropped", "pixels_dropped", "holes_filled", "pixels_filled"):
            flat[name] = 0 if repairs is None else getattr(repairs, name)
        flat["drawn_mask"] = None if repairs is None else scores.mask
    return flat


def _link(source: Path, target: Path) -> None:
    """Link a file, or copy it where links cannot be made, as on another disk.

    Nothing in emfast writes into a file that is there: it writes a new one and renames it, so a
    linked file is never changed through its other name.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_sheet(path: Path, decided: Decided, places: list[int]) -> None:
    found = {}
    wanted = set(places)
    for place, entry, scores in decided.images():
        if place in wanted:
            found[place] = (entry, scores)
    repair = decided.repair is not None
    images, masks, captions = [], [], []
    for place in places:
        entry, scores = found[place]
        mask = decided.source.mask(entry)
        reasons = decided.reasons(place, scores)
        if decided.repair is not None and not reasons:
            mask = decided.repair(mask).mask
        told = [reason_text(reason, scores, decided.rules, repair) for reason in reasons]
        images.append(decided.source.image(entry))
        masks.append(mask)
        captions.append((f"{entry['index']:06d}", *told, *scores_text(scores, repair, reasons)))
    captioned_sheet(images, masks, captions).save(path)
