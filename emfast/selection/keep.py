"""Drawing until so many images are accepted: a set that grows in rounds, and a selection of it.

OUT/drawn       the set, with the scores of its images
OUT/selected    the first images that pass the rules, exactly as many as were asked for
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from emfast.selection.folder import Tally
from emfast.selection.ledger import BLOCK
from emfast.selection.repair import Repair
from emfast.selection.rules import Rules
from emfast.selection.select import SELECTION, Selection, Selector, decide, open_selector
from emfast.selection.source import Source
from emfast.selection.words import reasons_text
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Job, run_job
from emfast.synthesis.manifest import JOB, read_job
from engines.errors import UserError

DRAWN, SELECTED = "drawn", "selected"
# Images of the first round, after which it is known how many more it takes.
LOOK = 256
# A set of so many images or more, of which fewer than one in so many is accepted, is given up.
HOPELESS = 256
# Most images of a round: a long run tells now and then how far it is.
MOST = 4096


def keep_until(
    wanted: int,
    draw: Callable[[int], None],
    out: Path,
    selector: Selector,
    rules: Rules | None = None,
    repair: Repair | None = None,
    tell: Callable[[str], None] = print,
) -> Selection:
    """Draw in rounds until ``wanted`` images pass the rules, and select them.

    The rounds follow from what was accepted so far, so that a run that was killed ends with the
    same bytes as one that was not.

    Args:
        wanted: images to accept, at least 1.
        draw: draws the set in ``out``/drawn up to a number of images, or what is missing of it.
        out: folder of both sets.
        selector: that judges.
        rules: thresholds only; which images are best, or fit the mix, depends on the whole set.
        repair: of masks; none by default.
        tell: called with a line after each round.

    Raises:
        UserError: rules that depend on the whole set, too few images that are accepted, or what
            drawing and selecting raise.
    """
    if wanted < 1:
        raise UserError(f"--keep-until {wanted}: give a number of images from 1")
    rules = rules or Rules()
    if rules.relative:
        raise UserError(
            "--keep-until takes thresholds only; apply best and match with emfast select"
        )
    rules = replace(rules, first=wanted)
    drawn, selected = out / DRAWN, out / SELECTED
    if (out / JOB).exists():
        raise UserError(f"{out}: is a set, and --keep-until makes a folder of two; name another")
    found = _found(selected, rules, repair)
    if found is not None:
        return found
    count = _first_round(wanted, drawn)
    while True:
        draw(count)
        source = Source(drawn)
        ledger, limits, _ = selector.score(source)
        decided = decide(source, ledger, rules, limits, repair)
        passed = int(decided.choice.passed.sum())
        tell(f"{passed} of {count} images accepted ({100 * passed / count:.1f} %)")
        if passed >= wanted:
            return selector.select(source, selected, rules, repair)
        if count >= HOPELESS and passed * HOPELESS < count:
            reasons = reasons_text(Tally.of(decided).reasons)
            raise UserError(
                f"{passed} of the first {count} images are accepted, fewer than one in {HOPELESS}, "
                f"so that --keep-until {wanted} is given up ({reasons}); look at "
                f"{drawn / 'contact.png'}, or try other rules: emfast select {drawn}"
            )
        if passed:
            lacking = math.ceil((wanted - passed) * count / passed)
            more = min(_whole_blocks(lacking), MOST)
            tell(f"about {lacking} more to draw for {wanted}; drawing {more}")
        else:
            more = _whole_blocks(max(LOOK - count, 1))
            tell(f"none to tell from how many it takes; drawing {more} more")
        count += more


def generate_until(
    wanted: int,
    job: Job,
    generator: Generator,
    out: Path,
    real: Path,
    repair: Repair | None = None,
    *,
    threads: int | None = None,
    verify: bool = False,
    tell: Callable[[str], None] = print,
) -> Selection:
    """As :func:`keep_until`, with the shipped segmenter, drawing on this machine.

    Args:
        wanted, out, repair, tell: as there.
        job: what to draw; its number of images does not count.
        generator: the denoiser on its engine.
        real: real slices with masks.
        threads: CPU threads of what judges.
        verify: as for :func:`~emfast.synthesis.job.run_job`.

    Raises:
        UserError: as there, and for a size that cannot be judged.
    """
    height, width = job.size
    if height != width:
        raise UserError(f"images of {width} x {height} pixels cannot be judged; only square ones")

    def draw(count: int) -> None:
        run_job(replace(job, count=count), generator, out / DRAWN, verify=verify)

    with open_selector(real, height, threads=threads, tell=tell) as selector:
        return keep_until(wanted, draw, out, selector, repair=repair, tell=tell)


def _first_round(wanted: int, drawn: Path) -> int:
    """Images to draw first; where a run was killed, those of the round that it was in."""
    if (drawn / JOB).exists():
        return int(read_job(drawn)["count"])
    return min(_whole_blocks(wanted), LOOK)


def _whole_blocks(images: int) -> int:
    """Images are scored in blocks; a round of whole ones leaves none to score again."""
    return -(-images // BLOCK) * BLOCK


def _found(selected: Path, rules: Rules, repair: Repair | None) -> Selection | None:
    """What an earlier run has finished; :class:`UserError` where it was by other rules."""
    if not selected.exists():
        return None
    path = selected / SELECTION
    try:
        values = json.loads(path.read_text())
        given = {name: value for name, value in asdict(rules).items() if value is not None}
        repaired = None if repair is None else asdict(repair)
        if {**values["rules"], **given} != values["rules"] or values["repair"] != repaired:
            raise UserError(
                f"{selected}: holds another selection, of {values['accepted']} images; remove it, "
                "and the same command makes a new one of the images that are drawn"
            )
        accepted = values["accepted"]
        rejected, reasons = values["images"] - accepted, values["reasons"]
        return Selection(selected, accepted, rejected, reasons, values["repaired"] or 0, 0)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is missing or damaged; remove {selected} ({error})") from None
