from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from emfast.segmentation.greys import Greys
from emfast.server.batching import Batcher, Ran, Reading
from engines.errors import UserError


class Recorder:
    """A network that keeps what it was given, and can be held up."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.go = threading.Event()
        self.started = threading.Event()

    def probability(
        self,
        images: npt.NDArray[Any],
        greys: Greys,
        pixel_size: tuple[float, float] | None,
    ) -> npt.NDArray[np.float32]:
        self.started.set()
        assert self.go.wait(60)
        self.batches.append(images.shape)
        if (images == 13).any():
            raise UserError("13 is not a number")
        if (images == 14).any():
            raise ZeroDivisionError
        return images[:, None].astype(np.float32)


def slices(*values: int, side: int = 4) -> npt.NDArray[np.uint8]:
    planes = [np.full((side, side), value, np.uint8) for value in values]
    return np.stack(planes)


def first(probability: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
    return probability[0, 0, 0]


def test_slices_of_one_size_run_together_and_in_order() -> None:
    network, ran = Recorder(), list[Ran]()
    batcher = Batcher([network], max_wait=0.0, max_batch=4, on_ran=ran.append)
    held = batcher.submit(slices(0), first)
    assert network.started.wait(60)
    jobs = [
        *batcher.submit(slices(1), first),
        *batcher.submit(slices(2, side=5), first),
        *batcher.submit(slices(3, 4, 5, 6, 7, 8), first),
    ]
    assert len(batcher) == 8
    network.go.set()
    batcher.close()
    # Three are left of the first size: two run, then one.
    assert network.batches == [(1, 4, 4), (4, 4, 4), (1, 5, 5), (2, 4, 4), (1, 4, 4)]
    assert [job.future.result() for job in [*held, *jobs]] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert [batch.slices for batch in ran] == [1, 4, 1, 2, 1]
    assert not batcher.alive


def test_slices_that_are_read_differently_run_apart() -> None:
    network = Recorder()
    batcher = Batcher([network], max_wait=0.0, max_batch=8)
    held = batcher.submit(slices(0), first)
    assert network.started.wait(60)
    jobs = [
        *batcher.submit(slices(1), first),
        *batcher.submit(slices(2).astype(np.uint16), first),
        *batcher.submit(slices(3), first, Reading(Greys(invert=True))),
        *batcher.submit(slices(4), first, Reading(pixel_size=(8.0, 8.0))),
        *batcher.submit(slices(5), first, Reading(Greys(), None)),
    ]
    network.go.set()
    batcher.close()
    assert [shape[0] for shape in network.batches] == [1, 2, 1, 1, 1]
    assert [job.future.result() for job in [*held, *jobs]] == [0, 1, 2, 3, 4, 5]


def test_requests_take_turns() -> None:
    network, order = Recorder(), list[int]()

    def note(probability: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
        order.append(int(probability[0, 0, 0]))
        return probability

    batcher = Batcher([network], max_wait=0.0, max_batch=1)
    batcher.submit(slices(0), note)
    assert network.started.wait(60)
    batcher.submit(slices(10, 11, 12), note)
    batcher.submit(slices(20, 21), note)
    batcher.submit(slices(30), note)
    network.go.set()
    batcher.close()
    assert order == [0, 10, 20, 30, 11, 21, 12]


def test_single_images_do_not_hold_up_a_stack_for_ever() -> None:
    network, order = Recorder(), list[int]()

    def single(probability: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
        order.append(1)
        if len(order) < 20:
            batcher.submit(slices(1), single)  # another one comes as soon as one is done
        return probability

    def stack(probability: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
        order.append(2)
        return probability

    batcher = Batcher([network], max_wait=0.0, max_batch=1)
    batcher.submit(slices(1), single)
    assert network.started.wait(60)
    jobs = batcher.submit(slices(2, 2, 2), stack)
    network.go.set()
    for job in jobs:
        job.future.result(60)
    batcher.close()
    assert order[:6] == [1, 2, 1, 2, 1, 2]


def test_a_slice_waits_for_others_within_the_budget() -> None:
    network = Recorder()
    network.go.set()
    batcher = Batcher([network], max_wait=600.0, max_batch=2)
    jobs = [*batcher.submit(slices(1), first), *batcher.submit(slices(2), first)]
    assert [job.future.result(60) for job in jobs] == [1, 2]  # full: no reason to wait on
    assert network.batches == [(2, 4, 4)]
    batcher.close()


def test_large_slices_do_not_pile_up() -> None:
    network = Recorder()
    network.go.set()
    batcher = Batcher([network], max_wait=0.01, max_batch=16)
    batcher.submit(slices(1, 2, 3, side=1024), first)
    batcher.close()
    assert network.batches == [(1, 1024, 1024)] * 3


def test_what_is_cancelled_does_not_run() -> None:
    network = Recorder()
    batcher = Batcher([network], max_wait=0.0, max_batch=1)
    running = batcher.submit(slices(1), first)
    assert network.started.wait(60)
    waiting = batcher.submit(slices(2, 3), first)
    batcher.cancel([*running, *waiting])
    assert len(batcher) == 0
    network.go.set()
    batcher.close()
    assert network.batches == [(1, 4, 4)]
    assert running[0].future.result() == 1
    with pytest.raises(CancelledError):
        waiting[0].future.result()


def test_a_fault_is_that_of_one_slice() -> None:
    network = Recorder()
    network.go.set()
    batcher = Batcher([network], max_wait=0.05, max_batch=4)
    good, bad = batcher.submit(slices(1), first), batcher.submit(slices(13), first)
    assert good[0].future.result(60) == 1
    with pytest.raises(UserError, match="13 is not a number"):
        bad[0].future.result(60)
    with pytest.raises(ZeroDivisionError):
        batcher.submit(slices(14), first)[0].future.result(60)
    assert batcher.alive
    assert batcher.submit(slices(2), first)[0].future.result(60) == 2
    batcher.close()


def test_workers_share_the_queue() -> None:
    networks = [Recorder(), Recorder()]
    batcher = Batcher(networks, max_wait=0.0, max_batch=1)
    jobs = batcher.submit(slices(1, 2), first)
    assert all(network.started.wait(60) for network in networks)
    for network in networks:
        network.go.set()
    assert [job.future.result(60) for job in jobs] == [1, 2]
    batcher.close()
