from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from emfast.cluster import shards
from emfast.cluster.connection import Cluster
from emfast.cluster.generation import draw_on_cluster
from emfast.cluster.shared_folder import Token
from emfast.cluster.workers import Slot
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Job, run_job
from engines.errors import UserError
from tests.bundles import write_denoiser_bundle
from tests.emfast.cluster.processes import busy_workers, descendants, listening
from tests.sets import digests

ENGINE = "onnxruntime-cpu"
JOB = Job(count=48, seed=7, steps=20, size=(288, 288), batch=2, pairs=True)


@pytest.fixture(scope="module")
def whole(denoiser: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sets") / "whole"
    with Generator.open(denoiser, ENGINE, threads=2) as generator:
        run_job(JOB, generator, folder)
    return digests(folder)


def listed(folder: Path) -> int:
    return sum(p.read_bytes().count(b"\n") for p in folder.glob("manifest-*.jsonl"))


@contextmanager
def meanwhile(folder: Path, least: int, action: Callable[[], None]):  # type: ignore[no-untyped-def]
    """Do something in another thread when a set has so many images."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while listed(folder) < least and time.monotonic() < deadline:
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


def test_a_killed_worker_changes_nothing(
    cluster: Cluster,
    denoiser: Path,
    whole: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    told: list[str] = []
    killed: list[int] = []

    def kill() -> None:
        # A worker may end its shard at the moment in which it is chosen: then another one.
        while not any("lost" in line for line in told) and listed(out) < JOB.count:
            for worker in busy_workers()[:1]:
                killed.append(worker)
                os.kill(worker, signal.SIGKILL)
            time.sleep(1)

    out = tmp_path / "set"
    with meanwhile(out, 6, kill):
        result = draw_on_cluster(
            "auto", JOB, out, str(denoiser), ENGINE, threads=1, tell=told.append
        )
    assert killed
    assert any("a worker was lost; shard" in line for line in told), told
    assert [line for line in told if line.startswith("engine at")] == [
        next(line for line in told if "onnxruntime-cpu (" in line)
    ]
    assert (result.drawn, result.found, result.lacking) == (48, 0, 0)
    assert digests(out) == whole
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "images 48/48" in printed.err and "raylet" not in printed.err


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own answer to SIGINT: a process begins without it where a shell ran it with &."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_stopped_it_goes_on(cluster: Cluster, denoiser: Path, tmp_path: Path) -> None:
    told: list[str] = []
    out = tmp_path / "set"
    # After the first of a shard's three batches: Ray 2.60 may abort this process where a task ends
    # while it is cancelled.
    job = replace(JOB, count=96)
    with (
        meanwhile(out, 1, lambda: os.kill(os.getpid(), signal.SIGINT)),
        pytest.raises(KeyboardInterrupt),
    ):
        draw_on_cluster("auto", job, out, str(denoiser), ENGINE, threads=1, tell=told.append)
    there = listed(out)
    assert told[-1].startswith("stopped; ") and "the same command goes on" in told[-1]
    assert not list(out.glob(".job.*"))
    time.sleep(0.5)
    assert listed(out) == there < 96
    result = draw_on_cluster("auto", job, out, str(denoiser), ENGINE, threads=2)
    assert (result.drawn, result.found) == (96 - there, there)
    with Generator.open(denoiser, ENGINE, threads=2) as generator:
        run_job(job, generator, tmp_path / "whole")
    assert digests(out) == digests(tmp_path / "whole")


def test_a_finished_set_is_left_alone(cluster: Cluster, denoiser: Path, tmp_path: Path) -> None:
    job = Job(count=4, seed=1, steps=2, size=(32, 48), batch=2, pairs=False)
    out = tmp_path / "set"
    draw_on_cluster("auto", job, out, str(denoiser), ENGINE, threads=1)
    before = digests(out)
    result = draw_on_cluster("auto", job, out, str(denoiser), ENGINE, threads=1)
    assert (result.drawn, result.found) == (0, 4)
    assert digests(out) == before


def test_what_a_worker_raises_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    nan = write_denoiser_bundle(tmp_path / "nan", gain=float("nan"))
    job = Job(count=8, seed=1, steps=2, size=(32, 48), batch=2, pairs=False)
    with pytest.raises(UserError, match="drew values that are not numbers") as raised:
        draw_on_cluster("auto", job, tmp_path / "set", str(nan), ENGINE, threads=1)
    assert "\n" not in str(raised.value) and "Traceback" not in str(raised.value)
    assert str(raised.value).startswith(f"{os.uname().nodename}: ")
    assert not list((tmp_path / "set").glob(".job.*"))
    assert not busy_workers()


def test_a_folder_that_is_not_shared_is_told(
    cluster: Cluster, denoiser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def elsewhere(out: Path, count: int):  # type: ignore[no-untyped-def]
        yield Token(tmp_path / "not-mounted" / "token", "text", patience=0.1)

    monkeypatch.setattr(shards, "shared_folder", elsewhere)
    with pytest.raises(UserError, match="does not see this folder .* that all machines of the"):
        draw_on_cluster("auto", JOB, tmp_path / "set", str(denoiser), ENGINE, threads=1)
    assert not (tmp_path / "set").exists()


def test_the_batch_may_be_found_by_a_worker(
    cluster: Cluster, denoiser: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    job = Job(count=3, seed=1, steps=2, size=(32, 48), batch=64, pairs=False)
    draw_on_cluster(
        "auto", job, tmp_path, str(denoiser), ENGINE, threads=1, auto_batch=True, tell=told.append
    )
    assert any(line.startswith("batch: ") for line in told)
    assert len(list((tmp_path / "images").iterdir())) == 3


def test_a_worker_that_is_lost_every_time_is_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "RETRIES", 1)
    with pytest.raises(UserError, match=r"its worker was lost 2 times \(") as raised:
        shards.run_on_worker(Slot(1, 0, 1, 2), lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert "\n" not in str(raised.value)


def test_nobody_else_reaches_a_cluster_of_ours(cluster: Cluster) -> None:
    addresses = listening(set(descendants(os.getpid())))
    # 127.0.0.1, alone and as an address of IPv6.
    assert addresses and addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
