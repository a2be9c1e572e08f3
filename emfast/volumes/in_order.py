"""What writers of files in one piece have in common: slices come in order, and all of them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from emfast.volumes.axes import Pixels


class InOrder:
    """Base of a writer whose file appears when the last slice is written.

    Args:
        path: to write.
        slices: of the volume.
    """

    resumable = False

    def __init__(self, path: Path, slices: int) -> None:
        self.path = path
        self._slices, self._next = slices, 0
        # Entered by what opens the file; leaving it gives the file its name.
        self._exit = ExitStack()

    def write(self, start: int, slices: Pixels) -> None:
        if start != self._next:
            raise ValueError(f"slice {start} comes after {self._next} others; write in order")
        self._append(start, slices)
        self._next += len(slices)

    def _append(self, start: int, slices: Pixels) -> None:
        """Store slices that go on where the ones before stopped."""
        raise NotImplementedError

    def _complete(self) -> None:
        """What is left to do when every slice is stored."""

    def written(self, start: int, stop: int) -> bool:
        return stop <= self._next

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is not None:
            self._exit.__exit__(*exception)
            return
        with self._exit:
            if self._next != self._slices:
                raise ValueError(f"{self._next} of {self._slices} slices were written")
            self._complete()
