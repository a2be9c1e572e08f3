"""Contestants of a benchmark, each in a process of its own.

A process has its own libraries, threads and memory: what one contestant loads or leaves behind
does not change the others, and its peak memory can be told. They run in turn, never at once.
"""

from __future__ import annotations

import resource
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Protocol

from engines.errors import UserError

KILOBYTE = 1024


@dataclass(frozen=True)
class Round:
    """What a contestant took for some steps of one batch.

    Attributes:
        steps: seconds of each step.
        inside: seconds of all steps that the network alone took, where that can be told.
    """

    steps: tuple[float, ...]
    inside: float | None = None


class Contestant(Protocol):
    """Something that takes denoising steps. Made in its process, by :data:`Factory`."""

    description: str
    batch: int

    def run(self, steps: int) -> Round:
        """Take ``steps`` steps of one batch from the start."""


Factory = Callable[..., Contestant]


class Worker:
    """A contestant in a process of its own.

    Args:
        label: for people.
        factory: "module:function", which makes the contestant.
        arguments: for the function.

    Attributes:
        description: the contestant's own words: engine, precision, versions.
        batch: images that it draws together.

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
        self.description, self.batch = self._receive()

    def run(self, steps: int) -> Round:
        """As :meth:`Contestant.run`."""
        self._connection.send(steps)
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
        connection.send((None, (contestant.description, contestant.batch)))
        while (steps := connection.recv()) is not None:
            connection.send((None, contestant.run(steps)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTE
        connection.send((None, peak))
    except UserError as error:
        connection.send((str(error), None))
    except Exception as error:  # told by the parent; the trace is for who mends it
        traceback.print_exc(file=sys.stderr)
        connection.send((f"{type(error).__name__}: {error}", None))
