"""Which engines of this machine a benchmark measures."""

from __future__ import annotations

from collections.abc import Sequence

from engines.bundle import open_bundle
from engines.errors import UserError
from engines.selection import CANDIDATES, ENGINES, PRECISIONS


def choose_engines(model: str, kind: str, named: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of engine and precision to measure.

    Args:
        model: a shipped bundle's name, or a bundle's folder.
        kind: of the bundle.
        named: "engine" or "engine:precision"; none for every engine that runs here in every
            precision of the bundle.

    Raises:
        UserError: names that are not engines or precisions.
    """
    bundle = open_bundle(model, kind)
    if not named:
        return [
            (candidate.name, precision)
            for candidate in CANDIDATES
            for precision in bundle.precisions
            if precision in candidate.precisions
        ]
    pairs = []
    for text in named:
        engine, _, precision = text.partition(":")
        if engine not in ENGINES[1:] or precision not in ("", *PRECISIONS[1:]):
            raise UserError(
                f"{text!r}: expected an engine of {', '.join(ENGINES[1:])}, and after a colon a "
                f"precision of {', '.join(PRECISIONS[1:])}"
            )
        runs = next(candidate.precisions for candidate in CANDIDATES if candidate.name == engine)
        every = [p for p in bundle.precisions if p in runs]
        pairs += [(engine, p) for p in ([precision] if precision else every)]
    return pairs
