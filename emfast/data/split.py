"""Splitting a stack by blocks of consecutive slices.

Neighbouring slices of a volume are nearly the same image (5 nm apart in the EPFL stack), so a
split of random tiles or slices puts near copies of the training data into the held-out part and
flatters every score. Held-out slices come in blocks, and a gap on both sides of every block is
used for neither part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from engines.errors import UserError

RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?")


def parse_slices(text: str, count: int) -> list[int]:
    """Read slice numbers such as ``140-164`` or ``0-9,20``.

    Args:
        text: slice numbers and ranges between commas; both ends of a range are included.
        count: number of slices in the stack, which are numbered from 0.

    Returns:
        The numbers in ascending order, each once.

    Raises:
        UserError: text of another form, a range that runs backwards, or a slice out of range.
    """
    slices: set[int] = set()
    for part in text.split(","):
        match = RANGE.fullmatch(part.strip())
        if match is None:
            raise UserError(
                f"slices {text!r}: cannot read {part.strip()!r}; "
                "give numbers and ranges such as 140-164 or 0-9,20"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"slices {text!r}: {part.strip()} runs backwards; write {last}-{first}")
        if last >= count:
            raise UserError(
                f"slices {text!r}: there is no slice {last}; "
                f"the stack has {count}, numbered 0 to {count - 1}"
            )
        slices.update(range(first, last + 1))
    return sorted(slices)


def holdout_split(count: int, holdout: Sequence[int], gap: int) -> tuple[list[int], list[int]]:
    """Split a stack into training slices and held-out blocks of consecutive slices.

    Args:
        count: number of slices in the stack.
        holdout: slice numbers in [0, count - 1] that form one block or several.
        gap: slices on each side of every block that belong to neither part.

    Returns:
        The training slices, which are all those further than ``gap`` from every held-out one,
        and the held-out slices; both ascending.

    Raises:
        UserError: nothing held out, a slice out of range, a negative gap, or no slice left.
    """
    held = sorted(set(holdout))
    if not held:
        raise UserError("no slices are held out; name at least one block, such as 140-164")
    if held[0] < 0 or held[-1] >= count:
        outside = held[0] if held[0] < 0 else held[-1]
        raise UserError(
            f"held-out slice {outside} does not exist; "
            f"the stack has {count}, numbered 0 to {count - 1}"
        )
    if gap < 0:
        raise UserError(f"a gap of {gap} slices is impossible; give 0 or more")
    excluded = {near for slice in held for near in range(slice - gap, slice + gap + 1)}
    training = [slice for slice in range(count) if slice not in excluded]
    if not training:
        raise UserError(
            f"no slices are left for training: {len(held)} of {count} are held out with a gap "
            f"of {gap}; hold out fewer or narrow the gap"
        )
    return training, held


def slice_ranges(slices: Sequence[int]) -> str:
    """Write ascending slice numbers in the form that :func:`parse_slices` reads."""
    blocks: list[list[int]] = []
    for number in slices:
        if blocks and number == blocks[-1][-1] + 1:
            blocks[-1].append(number)
        else:
            blocks.append([number])
    return ",".join(f"{b[0]}-{b[-1]}" if len(b) > 1 else f"{b[0]}" for b in blocks)


def split_json(source: str, names: Sequence[str], holdout: str, gap: int) -> str:
    """Describe a split as JSON.

    Args:
        source: where the slices are.
        names: one a slice of the whole stack.
        holdout: held-out slices in the form that :func:`parse_slices` reads.
        gap: as in :func:`holdout_split`.

    Returns:
        An object with ``source``, ``slices`` (their number), ``gap``, and for ``training`` and
        ``holdout`` the ``slices`` as text for :func:`parse_slices`, their ``count`` and ``names``.

    Raises:
        UserError: as :func:`parse_slices` and :func:`holdout_split`.
    """
    parts = holdout_split(len(names), parse_slices(holdout, len(names)), gap)
    described = {
        part: {
            "slices": slice_ranges(indices),
            "count": len(indices),
            "names": [names[i] for i in indices],
        }
        for part, indices in zip(("training", "holdout"), parts, strict=True)
    }
    return json.dumps({"source": source, "slices": len(names), "gap": gap, **described}, indent=2)
