"""What workers tell the run that shares out the work, through a queue of Ray's."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Counts are sent so often at most: a GPU may list hundreds of images a second.
SEND_SECONDS = 0.5
LOGGERS = ("emfast", "engines", "export")


@dataclass(frozen=True)
class Begun:
    """A worker on ``host`` takes up shard ``number``."""

    number: int
    host: str


@dataclass(frozen=True)
class Told:
    """A line for the user."""

    line: str


@dataclass(frozen=True)
class Counted:
    """So many images or slices are newly written."""

    count: int


class Messenger:
    """A worker's end of the queue.

    Args:
        queue: a ``ray.util.queue.Queue``.
    """

    def __init__(self, queue: Any) -> None:
        self._queue, self.host = queue, socket.gethostname()
        self._count, self._sent, self._lock = 0, time.monotonic(), threading.Lock()

    def begin(self, number: int) -> None:
        self._queue.put(Begun(number, self.host))

    def tell(self, line: str) -> None:
        self._queue.put(Told(line))

    def count(self, newly: int) -> None:
        """Add to what is written; may be called from any thread."""
        with self._lock:
            self._count += newly
            if time.monotonic() - self._sent >= SEND_SECONDS:
                self._send()

    def flush(self) -> None:
        """Send what :meth:`count` has kept back."""
        with self._lock:
            self._send()

    def _send(self) -> None:
        if self._count:
            self._queue.put(Counted(self._count))
        self._count, self._sent = 0, time.monotonic()

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Tell what our packages log, such as the building of an engine, with the host's name."""
        handler = _Handler(self)
        loggers = [logging.getLogger(name) for name in LOGGERS]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.INFO)
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.removeHandler(handler)
                logger.setLevel(level)


class _Handler(logging.Handler):
    def __init__(self, messenger: Messenger) -> None:
        super().__init__()
        self._messenger = messenger

    def emit(self, record: logging.LogRecord) -> None:
        self._messenger.tell(f"{self._messenger.host}: {record.getMessage()}")
