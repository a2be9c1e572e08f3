"""A large set goes on soon, and takes no more memory than a small one."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import pytest

from emfast.synthesis.denoiser import Generator
from emfast.synthesis.folder import SetFolder
from emfast.synthesis.job import Job, run_job
from emfast.synthesis.manifest import read_manifest
from emfast.synthesis.shard import Shard
from tests.sets import fabricate

FEW, MANY, LARGE, NEW = 3000, 9000, 20_000, 4
# As benchmarks/resume.py has it for a hundred thousand images: ten seconds to the first image.
SECONDS = 10 * LARGE / 100_000


@pytest.fixture
def base(tiny: Generator, tmp_path: Path) -> Path:
    run_job(Job(4, 0, 2, (32, 48), 4, False), tiny, tmp_path / "base")
    return tmp_path / "base"


def test_a_large_set_goes_on_soon(tiny: Generator, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    fabricate(base, folder, LARGE, LARGE + NEW)
    record = json.loads((folder / "job.json").read_text())
    start = time.monotonic()
    missing = SetFolder(folder, record, Shard()).missing(LARGE + NEW)
    seconds = time.monotonic() - start
    assert missing.tolist() == list(range(LARGE, LARGE + NEW))
    assert seconds < SECONDS
    start = time.monotonic()
    result = run_job(Job(LARGE + NEW, 0, 2, (32, 48), 4, False), tiny, folder)
    assert time.monotonic() - start < 3 * SECONDS
    assert (result.found, result.drawn, result.lacking) == (LARGE, NEW, 0)
    assert sum(1 for _ in read_manifest(folder)) == LARGE + NEW


def test_memory_does_not_grow_with_the_set(tiny: Generator, base: Path, tmp_path: Path) -> None:
    def peak(images: int) -> int:
        folder = tmp_path / str(images)
        fabricate(base, folder, images, images + NEW)
        tracemalloc.start()
        run_job(Job(images + NEW, 0, 2, (32, 48), 4, False), tiny, folder)
        most: int = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)  # what is imported late
    # Where each line begins and which images lack take 17 bytes an image, a line or a name more.
    assert peak(MANY) - peak(FEW) < 40 * (MANY - FEW)
