"""Progress on a terminal as a bar, elsewhere as a plain line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LINE_SECONDS = 30.0


class Advance(Protocol):
    """Move the bar by ``steps`` and show ``note`` behind it."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...


def duration(seconds: float) -> str:
    """Seconds as "1:02:03" or "2:03"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show how far ``total`` steps are, on standard error.

    Args:
        title: what is going on.
        total: number of steps.
        done: steps that an earlier run already took.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total, completed=done, note="")

            def advance(steps: int = 1, note: str = "") -> None:
                bar.update(task, advance=steps, note=note)

            yield advance
        return

    start = last = time.monotonic()
    position = done

    def advance_plain(steps: int = 1, note: str = "") -> None:
        nonlocal position, last
        position += steps
        now = time.monotonic()
        ended = position == total and steps > 0
        if now - last >= LINE_SECONDS or ended:
            last = now
            left = (now - start) / max(position - done, 1) * (total - position)
            line = f"{title} {position}/{total}, {duration(left)} left {note}".rstrip()
            console.print(line, highlight=False, soft_wrap=True)

    yield advance_plain
