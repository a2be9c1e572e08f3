"""Slices on their way from the reader through the network to the writer, each in its own thread.

While the network runs, the next slices are decoded and normalised and the last ones resampled,
compared with the threshold, encoded and written. Queues are short, so that memory holds a few
batches whatever the length of the volume.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from emfast.segmentation.greys import Greys, Prepared, prepare
from emfast.segmentation.neighbours import Median
from emfast.segmentation.predicted import Predicted
from emfast.segmentation.resampling import network_input, resample
from emfast.segmentation.segmenter import Segmenter
from emfast.volumes.volume import VolumeReader

Pixels = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
T = TypeVar("T")

# Batches that are prepared before the network asks for them, and that wait to be written.
AHEAD = 2
# Slices that are stored together are read together, up to so many bytes.
READ_BYTES = 2**27


@dataclass(frozen=True)
class Plan:
    """Which slices run and how.

    Attributes:
        blocks: first slice and end of what is to be written, in order.
        batch: slices that run together; batches begin at its multiples, so that a run that goes on
            gives the same bytes as one that was not cut off, with any engine.
        read: slices that are read together, a multiple of ``batch``.
        greys: how to read greys.
        by: growth of rows and columns, or None.
        median: neighbouring slices whose median is taken; 1 for none.
    """

    blocks: Sequence[tuple[int, int]]
    batch: int
    read: int
    greys: Greys
    by: tuple[float, float] | None
    median: int = 1


def run(
    reader: VolumeReader,
    segmenter: Segmenter,
    plan: Plan,
    take: Callable[[Predicted], None],
) -> None:
    """Segment the slices of a plan.

    Args:
        reader: of the volume.
        segmenter: that runs in this thread.
        plan: what to run.
        take: gets each slice of the blocks, in order, in the writer's thread.
    """
    slices = reader.info.slices
    sink = _Sink(plan, slices, take)
    batches = _prepared(reader, segmenter, plan, _needed(plan, slices))
    with closing(ahead(batches, AHEAD)) as coming, Behind(AHEAD) as behind:
        for start, images, prepared, x in coming:
            probability = segmenter.predict(x)
            behind.submit(sink.put, start, images, prepared, probability)


def _needed(plan: Plan, slices: int) -> Iterator[tuple[int, int]]:
    """First slice and end of what is read together, in order; neighbours for the median are in."""
    half, end = plan.median // 2, 0
    for first, last in plan.blocks:
        start = max(first - half, 0) // plan.batch * plan.batch
        stop = min(-(-(last + half) // plan.batch) * plan.batch, slices)
        start = max(start, end)
        while start < stop:
            # At multiples, as they are stored.
            upto = min((start // plan.read + 1) * plan.read, stop)
            yield start, upto
            start = end = upto


def _prepared(
    reader: VolumeReader,
    segmenter: Segmenter,
    plan: Plan,
    needed: Iterator[tuple[int, int]],
) -> Iterator[tuple[int, Pixels, list[Prepared], Float32]]:
    """Batches as the network takes them, with the images that they come from."""
    empty = np.zeros((0, 0), dtype=np.float32)
    for start, stop in needed:
        slab = reader.read(start, stop)
        for first in range(start, stop, plan.batch):
            images = slab[first - start : min(first - start + plan.batch, stop - start)]
            planes = [prepare(i, segmenter.spec.normalization, plan.greys) for i in images]
            x = network_input([plane.x for plane in planes], plan.by)
            yield first, images, [replace(plane, x=empty) for plane in planes], x


class _Sink:
    """The writer's side: probabilities at the volume's own pixels, and the median across slices."""

    def __init__(self, plan: Plan, slices: int, take: Callable[[Predicted], None]) -> None:
        self._median = Median(plan.median, slices)
        self._take, self._plan, self._block = take, plan, 0

    def put(
        self, start: int, images: Pixels, prepared: list[Prepared], probability: Float32
    ) -> None:
        height, width = images.shape[-2:]
        probability = resample(probability, (height, width), smooth=False)
        for offset, (image, found) in enumerate(zip(images, prepared, strict=True)):
            item = Predicted(start + offset, image, found, probability[offset])
            found.erase(item.probability)
            for ready in self._median.push(item):
                if self._wanted(ready.index):
                    self._take(ready)

    def _wanted(self, index: int) -> bool:
        """Whether a slice is in a block; slices come in order."""
        blocks = self._plan.blocks
        while self._block < len(blocks) and index >= blocks[self._block][1]:
            self._block += 1
        return self._block < len(blocks) and index >= blocks[self._block][0]


def ahead(items: Iterable[T], most: int) -> Generator[T, None, None]:
    """Draw from an iterator in a thread of its own.

    Args:
        items: to draw from; what it raises is raised here.
        most: items that wait at a time.

    Yields:
        The items in order. Closing the generator ends the thread.
    """
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(most)
    stopped = threading.Event()

    def put(entry: tuple[bool, Any]) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def draw() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # handed to the thread that waits for the items
            put((False, error))

    thread = threading.Thread(target=draw, name="reader", daemon=True)
    thread.start()
    try:
        while True:
            there, value = waiting.get()
            if not there:
                if value is not None:
                    raise value
                return
            yield value
    finally:
        stopped.set()
        thread.join()


class Behind:
    """Calls in order in a thread of its own, of which a few wait at most. A context manager.

    Leaving it waits for all calls; what one of them raised is raised by the next one or there.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._pool = ThreadPoolExecutor(1, "writer")
        self._waiting: deque[Future[None]] = deque()

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function later; waits while too many calls do."""
        while len(self._waiting) >= self._most:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(function, *arguments))

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if exception[0] is None:
                while self._waiting:
                    self._waiting.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
