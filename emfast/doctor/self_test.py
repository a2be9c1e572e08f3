"""Every engine that can run here, tried on every shipped bundle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from emfast.doctor.facts import TRIAL, BundleFacts
from engines.isolated import ask

# The first use of an engine builds it.
TRIAL_SECONDS = 1800.0
# Of a trial that crashed, for a bug report.
LOG_LINES = 20
FAILED = "failed"


@dataclass(frozen=True)
class Trial:
    """One engine on one bundle.

    Attributes:
        engine: its name.
        bundle, precision: that it ran; None for an engine that this machine does not suit. A
            damaged bundle has the engine "none".
        state: "passed"; "failed", where it should run and does not, or disagrees with the
            reference; "unchecked", where it ran and there is no reference; or "unavailable".
        reason: in one line, unless it passed.
        facts: of :func:`emfast.doctor.trial.attempt`: what ran, times and measures.
    """

    engine: str
    bundle: str | None
    precision: str | None
    state: str
    reason: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; a number that is not finite becomes null."""
        values: dict[str, Any] = _finite(self.facts)
        return {
            "engine": self.engine,
            "bundle": self.bundle,
            "precision": self.precision,
            "state": self.state,
            "reason": self.reason,
            **values,
        }


@dataclass(frozen=True)
class SelfTest:
    """The trials of a machine."""

    trials: tuple[Trial, ...]

    def of(self, state: str) -> list[Trial]:
        """The trials of a state."""
        return [trial for trial in self.trials if trial.state == state]

    @property
    def passed(self) -> bool:
        """Whether something passed and nothing failed."""
        return bool(self.of("passed")) and not self.of(FAILED)

    @property
    def verdict(self) -> str:
        """The outcome in a sentence."""
        counts = f"{len(self.of('passed'))} passed, {len(self.of(FAILED))} failed"
        if self.of("unchecked"):
            counts += f", {len(self.of('unchecked'))} without a reference to compare with"
        if self.of("unavailable"):
            names = ", ".join(trial.engine for trial in self.of("unavailable"))
            counts += f"; cannot run here: {names}"
        return f"self-test {'passed' if self.passed else 'FAILED'}: {counts}."


def self_test(bundles: Sequence[BundleFacts], tell: Callable[[str], None]) -> SelfTest:
    """Open, run and verify every engine that can run here, one after the other.

    Args:
        bundles: that are shipped; a damaged one is a failure.
        tell: is given the name of each trial before it starts.
    """
    reply = ask(TRIAL, "candidates", timeout=TRIAL_SECONDS)
    if reply.value is None:
        return SelfTest((Trial("all", None, None, FAILED, reply.failure),))
    trials = [Trial("none", b.name, None, FAILED, b.reason) for b in bundles if b.reason]
    for engine in reply.value:
        trials += _engine(engine, bundles, tell)
    return SelfTest(tuple(trials))


def _engine(
    engine: str, bundles: Sequence[BundleFacts], tell: Callable[[str], None]
) -> list[Trial]:
    """The trials of an engine; one that tells why where this machine does not suit it."""
    trials: list[Trial] = []
    for bundle in bundles:
        for precision in bundle.precisions:
            tell(f"{engine}, {bundle.name}, {precision}")
            reply = ask(TRIAL, "try", bundle.name, engine, precision, timeout=TRIAL_SECONDS)
            if reply.value is None:
                log = {"log": reply.log.splitlines()[-LOG_LINES:]}
                trials.append(Trial(engine, bundle.name, precision, FAILED, reply.failure, log))
                continue
            facts = dict(reply.value)
            state, reason = facts.pop("state"), facts.pop("reason")
            if state == "unavailable":
                return [*trials, Trial(engine, None, None, state, reason)]
            trials.append(Trial(engine, bundle.name, precision, state, reason, facts))
    return trials


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
