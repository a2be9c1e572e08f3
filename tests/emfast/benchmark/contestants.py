"""Contestants whose times are known, for the benchmark's own tests."""

from __future__ import annotations

import os
import time

import tifffile

from emfast.benchmark.segmenters import Case
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


class Segmenting:
    """Takes ``factor`` milliseconds a pixel, nine times that the first time, or fails."""

    description = "by the clock"

    def __init__(self, factor: float, fails_on: str = "") -> None:
        self.factor, self.fails_on = factor, fails_on
        self.cases: list[Case] = []

    def run(self, case: Case) -> Round:
        if case.kind == self.fails_on:
            raise UserError("it broke")
        first = case not in self.cases
        self.cases.append(case)
        seconds = self.factor * case.size[0] * case.size[1] * case.batch / 1000
        slices = 1 if case.source is None else len(tifffile.TiffFile(case.source).pages)
        return Round(((9 if first else 1) * seconds * slices,))
