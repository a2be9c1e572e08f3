"""A disk that is full or read-only, and an engine that is lost: told, and nothing half-written."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Job, run_job
from emfast.synthesis.manifest import entries
from emfast.synthesis.pack import pack_set
from engines.errors import UserError
from tests.sets import contents

JOB = Job(count=11, seed=7, steps=3, size=(32, 48), batch=2, pairs=True)


@pytest.fixture(scope="module")
def generator(tiny: Generator) -> Generator:
    return tiny


@pytest.fixture(scope="module")
def whole(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sets") / "whole"
    run_job(JOB, generator, folder)
    return contents(folder)


def mount(*arguments: str | Path) -> None:
    try:
        subprocess.run(["mount", *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no file system can be mounted here: {error.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one page."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=4k", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def check_nothing_half_written(folder: Path) -> None:
    """What is under its name is whole, and there is nothing besides."""
    for path in folder.rglob("*"):
        assert ".tmp" not in path.name
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
    for part in folder.glob("manifest-*.jsonl"):
        assert sum(1 for _ in entries(part)) == part.read_bytes().count(b"\n")
        assert part.read_bytes()[-1:] in (b"", b"\n")


def test_a_disk_that_grows_page_by_page(
    generator: Generator, whole: dict[str, bytes], disk: Path
) -> None:
    folder = disk / "set"
    failures = []
    for kibibytes in range(4, 1000, 12):
        mount("-o", f"remount,size={kibibytes}k", disk)
        try:
            run_job(JOB, generator, folder)
            break
        except UserError as error:
            failures.append(str(error))
            check_nothing_half_written(folder)
    assert contents(folder) == whole
    assert len(failures) > 10
    assert all("No space left on device" in failure for failure in failures)
    told = [f for f in failures if "images are written, and the same command goes on" in f]
    assert len({f.split("; ")[1].split(" of ")[0] for f in told}) > 3  # more with more room


def test_a_disk_that_is_full_stops_the_batch(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine does not draw a long batch to its end for a disk that is full."""
    steps, sample = 0, generator.sample

    def slow(indices: list[int], *rest: Any) -> Any:
        nonlocal steps
        *settings, on_step, sampler, eta, reuse = rest

        def count() -> None:
            nonlocal steps
            steps += 1
            if indices[0] > 0:  # the first batch had its time to be written
                while not failed:
                    pass
            on_step()

        return sample(indices, *settings, count, sampler, eta, reuse)

    failed = []

    def full(self: Path, data: bytes) -> None:
        self.touch()
        failed.append(self)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(generator, "sample", slow)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"No space left on device\); 0 of 11 images are written"):
        run_job(replace(JOB, steps=20), generator, tmp_path / "set")
    assert steps < 30  # of 120
    check_nothing_half_written(tmp_path / "set")


def test_a_read_only_folder(generator: Generator, whole: dict[str, bytes], disk: Path) -> None:
    mount("-o", "remount,size=1m", disk)
    run_job(JOB, generator, disk / "set")
    (disk / "set/images/000003.png").unlink()
    mount("-o", "remount,ro", disk)
    with pytest.raises(UserError, match="Read-only file system"):
        run_job(JOB, generator, disk / "new")
    with pytest.raises(UserError, match="Read-only file system.*10 of 11 images are written"):
        run_job(JOB, generator, disk / "set")
    mount("-o", "remount,rw", disk)
    run_job(JOB, generator, disk / "set")
    mount("-o", "remount,ro", disk)
    assert run_job(JOB, generator, disk / "set").found == 11  # nothing is to be written
    assert contents(disk / "set") == whole


def test_packing_on_a_disk_that_grows(finished: Path, disk: Path, tmp_path: Path) -> None:
    pack_set(finished, tmp_path / "whole", 2)
    failures = []
    for kibibytes in range(4, 1000, 12):
        mount("-o", f"remount,size={kibibytes}k", disk)
        try:
            pack_set(finished, disk / "tars", 2)
            break
        except UserError as error:
            failures.append(str(error))
            assert not list((disk / "tars").glob(".*"))
            for path in disk.glob("tars/*.tar"):
                assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    assert contents(disk / "tars") == contents(tmp_path / "whole")
    assert len(failures) > 5
    assert all("No space left on device" in failure for failure in failures)


def test_an_engine_that_is_lost(
    generator: Generator,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, calls = generator.engine.run, 0

    def lost(inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:  # in the third batch
            raise UserError("cudaStreamSynchronize failed: cudaErrorUnknown")
        return run(inputs)

    with monkeypatch.context() as patch:
        patch.setattr(generator.engine, "run", lost)
        with pytest.raises(
            UserError,
            match="^cudaStreamSynchronize failed: cudaErrorUnknown; 4 of 11 images are written, "
            "and the same command goes on with the rest$",
        ):
            run_job(JOB, generator, tmp_path / "set")
    check_nothing_half_written(tmp_path / "set")
    result = run_job(JOB, generator, tmp_path / "set")
    assert (result.found, result.drawn) == (4, 7)
    assert contents(tmp_path / "set") == whole
