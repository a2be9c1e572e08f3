"""Micro-batching: slices from several requests run together.

A thread a worker, each with its own engine. A worker takes the first slice, waits for others like
it, no longer than the latency budget counted from that slice's arrival, and runs what came: the
largest power of two of it, since engines compile or plan anew for every batch size. Alike are
slices of one size, number type and reading (:class:`~emfast.segmentation.greys.Greys`, pixel size).
Sizes are compared as they are, not as padded: slices are normalised over their own pixels.

Requests take turns: the first slices of all that wait go before the second ones, so that a stack
does not hold up single images.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from emfast.segmentation.greys import Greys
from engines.errors import UserError

Pixels = npt.NDArray[Any]
Probability = npt.NDArray[np.float32]
# What is kept of a slice's probability (classes, height, width); it runs on the worker.
Reduce = Callable[[Probability], npt.NDArray[np.generic]]
# Pixels that run together at most; more would only take memory.
BATCH_PIXELS = 2**20


class Network(Protocol):
    """What runs the batches: a :class:`~emfast.segmentation.segmenter.Segmenter`."""

    def probability(
        self, images: Pixels, greys: Greys, pixel_size: tuple[float, float] | None
    ) -> Probability:
        """Greys (slices, height, width) -> float32 (slices, classes, height, width)."""


@dataclass(frozen=True)
class Reading:
    """How a request's greys are read: arguments of :meth:`Network.probability`.

    Attributes:
        greys: inverted or not.
        pixel_size: height and width of a pixel in nm, or None for that of the network.
    """

    greys: Greys = field(default_factory=Greys)
    pixel_size: tuple[float, float] | None = None


AS_STORED = Reading()


@dataclass(eq=False)
class Job:
    """A slice on its way through a worker.

    Attributes:
        image: integers or floats (height, width).
        reduce: what is kept of the result.
        reading: of the request.
        turn: the round in which it runs at the latest.
        future: gets what ``reduce`` returns.
        arrived: on the clock of :func:`time.perf_counter`.
    """

    image: Pixels
    reduce: Reduce
    reading: Reading
    turn: int
    future: Future[npt.NDArray[np.generic]] = field(default_factory=Future)
    arrived: float = field(default_factory=time.perf_counter)

    def alike(self, other: Job) -> bool:
        """Whether both can run in one batch."""
        mine, its = self.image, other.image
        return (mine.shape, mine.dtype, self.reading) == (its.shape, its.dtype, other.reading)


@dataclass(frozen=True)
class Ran:
    """A batch that ran.

    Attributes:
        slices, pixels: in it.
        waited: seconds that each slice was in the queue.
        seconds: on the engine.
    """

    slices: int
    pixels: int
    waited: tuple[float, ...]
    seconds: float


class Batcher:
    """The queue and its workers.

    Args:
        networks: one for each worker; used by its thread alone.
        max_wait: seconds that a slice may wait for others to run with.
        max_batch: slices that run together.
        on_ran: told of each batch, on the worker's thread.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        max_wait: float,
        max_batch: int,
        on_ran: Callable[[Ran], None] = lambda ran: None,
    ) -> None:
        self._max_wait, self._max_batch, self._on_ran = max_wait, max_batch, on_ran
        # By turn; of one turn in the order of arrival.
        self._jobs: deque[Job] = deque()
        self._turn = 0
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(network,), name=f"worker {i}", daemon=True)
            for i, network in enumerate(networks)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Slices that wait."""
        return len(self._jobs)

    @property
    def alive(self) -> bool:
        """Whether every worker goes on."""
        return all(thread.is_alive() for thread in self._threads)

    def submit(self, images: Pixels, reduce: Reduce, reading: Reading = AS_STORED) -> list[Job]:
        """Queue the slices of a request.

        Args:
            images: integers or floats (slices, height, width).
            reduce: what is kept of each slice's probability.
            reading: of all of them.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            # Its first slice goes behind what waits of this round, not behind whole stacks; nor
            # before, or a stream of single images would keep a stack waiting for ever.
            jobs = [
                Job(image, reduce, reading, turn)
                for turn, image in enumerate(images, self._turn + 1)
            ]
            self._jobs = deque(sorted((*self._jobs, *jobs), key=lambda job: job.turn))
            self._changed.notify_all()
        return jobs

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Drop jobs that wait; those that run go on to their end."""
        dropped = {job for job in jobs if job.future.cancel()}
        with self._changed:
            self._jobs = deque(job for job in self._jobs if job not in dropped)

    def close(self) -> None:
        """Run what is queued and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, network: Network) -> None:
        while batch := self._next():
            self._run(network, batch)

    def _next(self) -> list[Job]:
        """The next batch; empty once the batcher is closed and its queue is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return []
            first = self._jobs.popleft()
            self._turn = first.turn
            batch = [first]
            most = min(self._max_batch, max(1, BATCH_PIXELS // first.image.size))
            deadline = first.arrived + self._max_wait
            while True:
                self._take_alike(batch, most)
                left = deadline - time.perf_counter()
                if len(batch) == most or left <= 0 or self._closed:
                    even = 1 << (len(batch).bit_length() - 1)
                    rest = (*batch[even:], *self._jobs)
                    self._jobs = deque(sorted(rest, key=lambda job: job.turn))
                    return batch[:even]
                self._changed.wait(left)

    def _take_alike(self, batch: list[Job], most: int) -> None:
        """Move queued slices like the batch's into it, in order."""
        passed: list[Job] = []
        while self._jobs and len(batch) < most:
            job = self._jobs.popleft()
            (batch if job.alike(batch[0]) else passed).append(job)
        self._jobs.extendleft(reversed(passed))

    def _run(self, network: Network, batch: list[Job]) -> None:
        jobs = [job for job in batch if job.future.set_running_or_notify_cancel()]
        if not jobs:
            return
        start = time.perf_counter()
        try:
            result = _probability(network, jobs)
            kept = [job.reduce(probability) for job, probability in zip(jobs, result, strict=True)]
        except UserError as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:  # the fault of one slice is not that of its neighbours
                for job in jobs:
                    self._run_alone(network, job)
            return
        except Exception as error:  # told by the request's own failure; the worker goes on
            for job in jobs:
                job.future.set_exception(error)
            return
        seconds = time.perf_counter() - start
        for job, value in zip(jobs, kept, strict=True):
            job.future.set_result(value)
        waited = tuple(start - job.arrived for job in jobs)
        self._on_ran(Ran(len(jobs), len(jobs) * jobs[0].image.size, waited, seconds))

    def _run_alone(self, network: Network, job: Job) -> None:
        try:
            job.future.set_result(job.reduce(_probability(network, [job])[0]))
        except Exception as error:
            job.future.set_exception(error)


def _probability(network: Network, jobs: Sequence[Job]) -> Probability:
    reading = jobs[0].reading
    images = np.stack([job.image for job in jobs])
    return network.probability(images, reading.greys, reading.pixel_size)
