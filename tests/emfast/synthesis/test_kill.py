"""Runs of the real command that are killed at random moments end with the bytes of one that is not.

The moments are drawn from a seed, and what they hit is up to the machine.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.sets import digests

IMAGES = 200
KILLS = 20
COMMAND = (
    *(sys.executable, "-c", "import sys; from emfast.cli.main import main; main()", "generate"),
    *("--count", str(IMAGES), "--size", "64", "64", "--steps", "2", "--seed", "3"),
    *("--model", "epfl-denoiser", "--engine", "onnxruntime-cpu", "--threads", "1"),
)
SECONDS = 120


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "--out", str(folder), *options]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(folder: Path, *options: str) -> str:
    process = start(folder, *options)
    out, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    return out


def images(folder: Path) -> int:
    try:
        return sum(not p.name.startswith(".") for p in (folder / "images").iterdir())
    except FileNotFoundError:
        return 0


def kill(folder: Path, when: float | int, rng: random.Random, *options: str) -> bool:
    """Start a run, and kill it after ``when`` seconds (float), or images in the folder (int).

    Returns:
        Whether it was still running.
    """
    process = start(folder, *options)
    begin = time.monotonic()
    while process.poll() is None and time.monotonic() < begin + SECONDS:
        if time.monotonic() - begin >= when if isinstance(when, float) else images(folder) >= when:
            time.sleep(rng.uniform(0, 0.03))
            break
        time.sleep(0.002)
    process.kill()
    process.communicate()
    return process.returncode < 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sets") / "undisturbed"
    assert f"{IMAGES} images at 2 steps of ddpm" in finish(folder)
    found = digests(folder)
    assert len(found) == 2 * IMAGES + 5
    return found


def test_twenty_kills(undisturbed: dict[str, str], tmp_path: Path) -> None:
    rng = random.Random(0)
    folder = tmp_path / "set"
    # Before the first image and after the last too.
    moments: Sequence[float | int] = [
        *(rng.uniform(0, 1.5) for _ in range(2)),
        *sorted(rng.randrange(1, IMAGES - 10) for _ in range(KILLS - 3)),
        IMAGES,
    ]
    killed = sum(kill(folder, moment, rng) for moment in moments)
    # The last run may have come to its end.
    assert killed >= KILLS - 1
    assert "were there already" in finish(folder)
    assert digests(folder) == undisturbed


def test_four_shards_of_which_some_are_killed(undisturbed: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "set"

    def run(number: int) -> bool:
        rng = random.Random(number)
        option = ("--shard", f"{number}/4")
        killed = number != 1 and kill(folder, rng.uniform(0.8, 2.0), rng, *option)
        finish(folder, *option)
        return killed

    with ThreadPoolExecutor(2) as two:
        killed = list(two.map(run, (1, 2, 3, 4)))
    assert any(killed)
    assert digests(folder) == undisturbed
