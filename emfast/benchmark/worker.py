"""Contestants of a benchmark, each in a process of its own.

A process has its own libraries, threads and memory: what one contestant loads or leaves behind
does not change the others, and its peak memory can be told. They run in turn, never at once.
"""

from __future__ import annotations

import resource
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from engines.errors import UserError

KILOBYTE = 1024


@dataclass(frozen=True)
class Round:
    """What a contestant took for some work.

    Attributes:
        steps: seconds of each step of it: a denoising step, or a run of a segmenter.
        inside: seconds of all steps that the network alone took, where that can be told.
    """

    steps: tuple[float, ...]
    inside: float | None = None


class Contestant(Protocol):
    """Something that works. Made in its process, by :data:`Factory`."""

    description: str

    def run(self, work: Any) -> Round:
        """Do what a benchmark asks for, and time it."""


Factory = Callable[..., Contestant]


@dataclass(frozen=True)
class Entry:
    """Who takes part.

    Attributes:
        label: for people.
        factory: "module:function", which makes the contestant.
        arguments: for the function.
    """

    label: str
    factory: str
    arguments: dict[str, Any]


class Worker:
    """A contestant in a process of its own.

    Args:
        label, factory, arguments: as for :class:`Entry`.

    Attributes:
        description: the contestant's own words: engine, precision, versions.

    Raises:
        UserError: it cannot be made here; the reason is told.
    """

    def __init__(self, label: str, factory: str, arguments: dict[str, Any]) -> None:
        self.label = label
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, factory, arguments), name=label, daemon=True
        )
        self._process.start()
        theirs.close()
        self.description: str = self._receive()

    def run(self, work: Any) -> Round:
        """As :meth:`Contestant.run`; ``work`` is not None."""
        self._connection.send(work)
        result: Round = self._receive()
        return result

    def close(self) -> int:
        """End the process; returns its peak memory in bytes."""
        self._connection.send(None)
        peak: int = self._receive()
        self._process.join()
        return peak

    def _receive(self) -> Any:
        try:
            error, value = self._connection.recv()
        except EOFError:
            self._process.join()
            raise UserError(
                f"{self.label}: its process ended with {self._process.exitcode} (out of memory?)"
            ) from None
        if error:
            raise UserError(f"{self.label}: {error}")
        return value


def _serve(connection: Connection, factory: str, arguments: dict[str, Any]) -> None:
    """Make the contestant, then run it as often as is asked."""
    try:
        module, name = factory.split(":")
        contestant: Contestant = getattr(import_module(module), name)(**arguments)
        connection.send((None, contestant.description))
        while (work := connection.recv()) is not None:
            connection.send((None, contestant.run(work)))
        connection.send((None, _peak_memory()))
    except UserError as error:
        connection.send((str(error), None))
    except Exception as error:  # told by the parent; the trace is for who mends it
        traceback.print_exc(file=sys.stderr)
        connection.send((f"{type(error).__name__}: {error}", None))


def _peak_memory() -> int:
    """Most memory that this process has held, in bytes.

    What ``getrusage`` tells begins with the peak of the process that started this one.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KILOBYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTE
