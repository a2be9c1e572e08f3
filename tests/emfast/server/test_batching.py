from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import numpy as np
import numpy.typing as npt
import pytest

from emfast.server.batching import Batcher, Ran
from engines.errors import UserError


class Recorder:
    """A network that keeps what it was given, and can be held up."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.go = threading.Event()
        self.started = threading.Event()

    def probability(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        self.started.set()
        assert self.go.wait(10)
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
    network.started.wait(10)
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


def test_a_slice_waits_for_others_within_the_budget() -> None:
    network = Recorder()
    network.go.set()
    batcher = Batcher([network], max_wait=5.0, max_batch=2)
    jobs = [*batcher.submit(slices(1), first), *batcher.submit(slices(2), first)]
    assert [job.future.result(4) for job in jobs] == [1, 2]  # full: no reason to wait on
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
    network.started.wait(10)
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
    assert good[0].future.result(10) == 1
    with pytest.raises(UserError, match="13 is not a number"):
        bad[0].future.result(10)
    with pytest.raises(ZeroDivisionError):
        batcher.submit(slices(14), first)[0].future.result(10)
    assert batcher.alive
    assert batcher.submit(slices(2), first)[0].future.result(10) == 2
    batcher.close()


def test_workers_share_the_queue() -> None:
    networks = [Recorder(), Recorder()]
    batcher = Batcher(networks, max_wait=0.0, max_batch=1)
    jobs = batcher.submit(slices(1, 2), first)
    assert all(network.started.wait(10) for network in networks)
    for network in networks:
        network.go.set()
    assert [job.future.result(10) for job in jobs] == [1, 2]
    batcher.close()
