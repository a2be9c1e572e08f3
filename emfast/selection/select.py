"""Selecting from a set: score what has no scores yet, apply the rules, write what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emfast.progress import progress
from emfast.segmentation.segmenter import SHIPPED
from emfast.selection.choice import choose
from emfast.selection.folder import Decided, Tally, write_set
from emfast.selection.judge import Judge
from emfast.selection.ledger import BLOCK, Ledger, file_hashes
from emfast.selection.reference import Limits
from emfast.selection.repair import Repair
from emfast.selection.rules import REASONS, Rules
from emfast.selection.source import Source
from emfast.selection.words import command, reasons_text
from emfast.synthesis.manifest import MANIFEST
from engines.errors import UserError
from engines.files import atomic_folder, sha256

SELECTION = "selection.json"
# Folder of the scores inside a set.
SCORES = "scores"


@dataclass(frozen=True)
class Selection:
    """What a selection came to.

    Attributes:
        folder: of the new set.
        accepted, rejected: numbers of images.
        reasons: how many images each reason of :data:`~emfast.selection.rules.REASONS` speaks
            against; one image may have several.
        repaired: kept images whose masks were repaired.
        scored: images that were scored by this call; the others had their scores.
        note: of which kind of image the mix could take no more; empty unless it was asked for.
    """

    folder: Path
    accepted: int
    rejected: int
    reasons: dict[str, int]
    repaired: int
    scored: int
    note: str = ""


class Selector:
    """Scores sets and selects from them. Made by :func:`open_selector`.

    Attributes:
        judge: that scores.
    """

    def __init__(self, judge: Judge, options: dict[str, str]) -> None:
        self.judge = judge
        self._options = options

    def score(self, source: Source, scores: Path | None = None) -> tuple[Ledger, Limits, int]:
        """Score those images of a set that have no scores yet.

        Args:
            source: the set.
            scores: folder where they are kept; "scores" inside the set by default.

        Returns:
            The scores, the limits that the real tiles set, and how many images were scored.
        """
        ledger = Ledger(scores or source.path / SCORES, self.judge.description)
        total = sum(1 for _ in source.entries())
        known = ledger.known(source.entries())
        limits = ledger.limits
        if limits is None:
            limits = self.judge.limits
            ledger.keep_limits(limits)
        if known == total:
            return ledger, limits, 0
        with progress("scoring images", total, known) as advance:
            for entries in source.blocks(known, BLOCK):
                images, masks = source.pairs(entries)
                hashes = [(h["images"], h["masks"]) for h in map(file_hashes, entries)]
                indices = [entry["index"] for entry in entries]
                ledger.append(self.judge.score(indices, hashes, images, masks))
                advance(len(entries))
        return ledger, limits, total - known

    def select(
        self,
        source: Source,
        out: Path,
        rules: Rules | None = None,
        repair: Repair | None = None,
        scores: Path | None = None,
    ) -> Selection:
        """Write the images of a set that pass the rules as a set of its own.

        Arguments and errors as for :func:`select_set`.
        """
        rules = rules or Rules()
        # Before the scores, which may take hours.
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"{out}: exists and is not empty; name another --out, or remove it")
        if repair is not None and source.classes > 1:
            raise UserError(
                f"{source.path}: masks of {source.classes} classes; only those of one are repaired"
            )
        ledger, limits, scored = self.score(source, scores)
        decided = decide(source, ledger, rules, limits, repair)
        return self._write(out, decided, rules, limits, scored)

    def _write(
        self, out: Path, decided: Decided, rules: Rules, limits: Limits, scored: int
    ) -> Selection:
        kept = decided.choice.kept
        accepted, wanted = int(kept.sum()), rules.first or 1
        tally = Tally.of(decided)
        if accepted < wanted:
            raise UserError(
                f"{decided.source.path}: {accepted} of its {len(kept)} images pass the rules, and "
                f"{wanted} are wanted ({reasons_text(tally.reasons)})"
            )
        summary = _summary(decided, tally, self.judge.description)
        told = {"command": command(rules, decided.repair is not None, self._options), **summary}
        with atomic_folder(out) as folder:
            write_set(folder, decided, tally, told)
            values = {**told, **_details(decided, tally, limits, self.judge.description)}
            (folder / SELECTION).write_text(json.dumps(values, indent=1) + "\n")
        return Selection(
            out,
            accepted,
            len(kept) - accepted,
            summary["reasons"],
            tally.repaired,
            scored,
            _scarce(decided, limits),
        )


def decide(
    source: Source, ledger: Ledger, rules: Rules, limits: Limits, repair: Repair | None
) -> Decided:
    """Apply rules to a set whose images all have scores."""
    settled = rules.settled(limits)
    choice = choose(ledger, settled, limits.strata, repair is not None)
    return Decided(source, ledger, settled, repair, choice)


@contextmanager
def open_selector(
    real: Path,
    side: int,
    segmenter: str | Path = SHIPPED,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> Iterator[Selector]:
    """Open what images are judged by; arguments and errors as for :func:`select_set`.

    Args:
        side: of the images, in pixels.
    """
    options = {} if segmenter == SHIPPED else {"segmenter": "SEGMENTER"}
    with Judge.open(real, side, segmenter, engine, precision, threads) as judge:
        info = judge.description["segmenter"]
        if tell is not None:
            for text in judge.passed_over:
                tell(text)
            tell(f"engine of the segmenter: {judge.engine}")
        options |= {"engine": info["engine"], "precision": info["precision"]}
        yield Selector(judge, options)


def select_set(
    source: Path,
    out: Path,
    real: Path,
    rules: Rules | None = None,
    repair: Repair | None = None,
    *,
    segmenter: str | Path = SHIPPED,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    scores: Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> Selection:
    """Write the images of a set that pass the rules as a set of its own.

    Images that have scores already are not scored again, so that a killed run goes on, and other
    rules take a moment.

    Args:
        source: a finished set that ``emfast generate`` drew. It is not changed, but for the
            scores that are kept in it.
        out: new or empty folder.
        real: real slices with masks.
        rules: what is kept.
        repair: of masks, before they are judged; none by default.
        segmenter: a shipped bundle or a folder, independent of the masks to judge.
        engine, precision, threads: of the segmenter, as for
            :func:`engines.selection.open_engine`.
        scores: folder where scores are kept; "scores" inside ``source`` by default.
        tell: called with lines on the engine that runs.

    Raises:
        UserError: not a finished set, no such real slices or bundle, a folder that cannot be
            written, or no image passes.
    """
    opened = Source(source)
    with open_selector(real, opened.side, segmenter, engine, precision, threads, tell) as selector:
        return selector.select(opened, out, rules, repair, scores)


def _scarce(decided: Decided, limits: Limits) -> str:
    available, strata = decided.choice.available, limits.strata
    if available is None:
        return ""
    number = strata.scarcest(available)
    share = strata.counts[number] / sum(strata.counts)
    return (
        f"scarcest in the mix: {strata.name(number)}; {100 * share:.2g} % of real tiles, "
        f"{100 * available[number] / sum(available):.2g} % of the images that pass"
    )


def _summary(decided: Decided, tally: Tally, judged_by: dict[str, Any]) -> dict[str, Any]:
    """What the card tells of a selection."""
    accepted = int(decided.choice.kept.sum())
    return {
        "drawn": decided.source.record["count"],
        "images": len(decided.choice.kept),
        "accepted": accepted,
        "reasons": {name: tally.reasons[name] for name in REASONS if tally.reasons[name]},
        "meanings": {name: REASONS[name] for name in REASONS if tally.reasons[name]},
        "repaired": tally.repaired if decided.repair is not None else None,
        "rules": asdict(decided.rules),
        "segmenter": judged_by["segmenter"],
        "real": judged_by["real"],
    }


def _details(
    decided: Decided, tally: Tally, limits: Limits, judged_by: dict[str, Any]
) -> dict[str, Any]:
    """What ``selection.json`` says beyond it."""
    choice, strata = decided.choice, limits.strata
    usual = limits.to_dict()
    del usual["strata"]
    values: dict[str, Any] = {
        "alone": {name: tally.alone[name] for name in REASONS if tally.alone[name]},
        "repair": None if decided.repair is None else asdict(decided.repair),
        "set": {
            "manifest_sha256": sha256(decided.source.path / MANIFEST),
            "denoiser_sha256": decided.source.record["model"]["sha256"],
        },
        "features": judged_by["features"],
        "real_tiles": usual,
    }
    if choice.quotas is not None and choice.available is not None:
        shares = np.array(strata.counts) / sum(strata.counts)
        values["strata"] = [
            {
                "stratum": strata.name(number),
                "real_share": round(float(share), 6),
                "available": available,
                "kept": quota,
            }
            for number, (share, available, quota) in enumerate(
                zip(shares, choice.available, choice.quotas, strict=True)
            )
        ]
    return values
