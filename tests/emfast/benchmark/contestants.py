"""Contestants whose times are known, for the benchmark's own tests."""

from __future__ import annotations

import os
import time

from emfast.benchmark.worker import Round
from engines.errors import UserError


class Clockwork:
    """Takes exactly as long as it is told, and remembers how often it was asked."""

    description = "clockwork"

    def __init__(self, seconds: float, batch: int, inside: float | None) -> None:
        self.seconds, self.batch, self.inside = seconds, batch, inside
        self.asked = 0

    def run(self, steps: int) -> Round:
        self.asked += 1
        slow = 10.0 if self.asked == 1 else 1.0  # a warm-up that must not count
        times = (99.0, *[slow * self.seconds] * (steps - 1))
        return Round(times, None if self.inside is None else self.inside * sum(times))


def unavailable() -> None:
    raise UserError("no such device")


def broken() -> None:
    raise ZeroDivisionError("by mistake")


def killed() -> None:
    os._exit(3)


class Hungry:
    description, batch = "hungry", 1

    def run(self, steps: int) -> Round:
        held = bytearray(200_000_000)
        time.sleep(0.01)
        return Round((len(held) * 1e-9,) * steps)
