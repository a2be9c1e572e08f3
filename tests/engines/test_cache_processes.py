from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.cache import EngineCache
from tests.recipes import (
    PLAN,
    RECIPE,
    VERIFICATION,
    files,
    put,
)

ROOT = Path(__file__).parents[2]
BUILDER = """
import json, logging, os, signal, sys
from pathlib import Path
from engines.cache import EngineCache
from engines.recipe import Recipe

logging.basicConfig(level="INFO", format="%(message)s")
cache = EngineCache(Path(sys.argv[1]))
recipe = Recipe.from_dict(json.loads(sys.argv[2]))
with cache.lock(recipe):
    entry = cache.find(recipe)
    if entry is None:
        print("building", flush=True)
        sys.stdin.readline()
        {put}
        print("built", flush=True)
    else:
        print("found", entry.sha256, flush=True)
"""
PUT = "cache.put(recipe, b'plan' * 1000, {}, 1.0)"


@pytest.fixture
def start(cache: EngineCache) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a process that builds the engine of RECIPE once a line comes on its input."""
    started = []

    def run(put: str = PUT) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                BUILDER.format(put=put),
                str(cache.folder),
                json.dumps(RECIPE.to_dict()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


Start = Callable[..., subprocess.Popen[str]]


def line(stream: Any) -> str:
    return str(stream.readline()).strip()


def test_one_of_two_processes_builds_and_the_other_waits(cache: EngineCache, start: Start) -> None:
    first = start()
    assert line(first.stdout) == "building"
    second = start()
    told = line(second.stderr)
    assert told == (
        f"waiting for another process (it holds {cache.folder / RECIPE.name}.lock): {RECIPE}"
    )
    assert second.poll() is None
    first.communicate("\n", timeout=20)
    out, _ = second.communicate(timeout=20)
    (entry,) = cache.entries()
    assert out.split() == ["found", entry.sha256]


def test_of_processes_that_start_at_once_one_builds(cache: EngineCache, start: Start) -> None:
    slow = f"import time; time.sleep(0.5); {PUT}"
    processes = [start(slow) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=30)[0].split() for process in processes]
    (entry,) = cache.entries()
    assert sorted(outputs) == [["building", "built"], *2 * [["found", entry.sha256]]]


def test_a_killed_builder_blocks_nobody(cache: EngineCache, start: Start) -> None:
    first = start()
    assert line(first.stdout) == "building"
    second = start()
    assert line(second.stderr).startswith("waiting for another process")
    first.send_signal(signal.SIGKILL)
    assert line(second.stdout) == "building"
    second.communicate("\n", timeout=20)
    assert len(cache.entries()) == 1


DIE = "(open(path, 'wb').write(b'half'), os.kill(os.getpid(), signal.SIGKILL))"


@pytest.mark.parametrize(
    ("method", "left"),
    [
        ("write_bytes", [".{name}.{pid}.tmp.engine"]),
        ("write_text", [".{name}.{pid}.tmp.json", "{name}.engine"]),
    ],
    ids=["while the engine is written", "before the sidecar is whole"],
)
def test_what_a_killed_process_leaves_counts_as_nothing(
    cache: EngineCache, start: Start, method: str, left: list[str]
) -> None:
    process = start(f"Path.{method} = lambda path, content: {DIE}; {PUT}")
    process.communicate("\n", timeout=20)
    assert process.returncode == -signal.SIGKILL
    names = [name.format(name=RECIPE.name, pid=process.pid) for name in left]
    assert files(cache) == names
    assert cache.get(RECIPE) is None and cache.find(RECIPE) is None and cache.entries() == []
    assert sorted(removed.path.name for removed in cache.prune()) == names
    assert list(cache.folder.iterdir()) == []


def test_a_new_engine_replaces_an_unfinished_one(cache: EngineCache) -> None:
    put(cache).sidecar.unlink()
    entry = put(cache, plan=PLAN[::-1])
    assert cache.find(RECIPE) == entry
    assert cache.prune() == []


def test_nothing_is_removed_that_another_process_works_on(
    cache: EngineCache, start: Start, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("engines.cache.CHANGE_WAIT_SECONDS", 0.1)
    entry = put(cache)
    entry.path.write_bytes(PLAN[:100])
    process = start("")
    assert line(process.stderr).endswith("it was removed")
    assert line(process.stdout) == "building"
    half = cache.folder / f".{RECIPE.name}.{process.pid}.tmp.engine"
    half.write_bytes(b"half an engine")
    entry.path.write_bytes(PLAN[:100])
    entry.sidecar.write_text(entry.to_json())
    assert cache.find(RECIPE) is None
    assert f"{entry.path}: is not used, another process works on it" in caplog.text
    assert cache.prune(lambda entry: "all are removed") == []
    assert f"{entry.path}: stays, another process works on it" in caplog.text
    cache.record(entry, VERIFICATION)
    assert "verification is not kept: another process works on it" in caplog.text
    cache.discard(entry)
    assert f"{entry.path}: is not removed: another process works on it" in caplog.text
    assert files(cache) == sorted([half.name, entry.path.name, entry.sidecar.name])


def test_a_removed_lock_file_is_made_anew(cache: EngineCache, start: Start) -> None:
    process = start("")
    assert line(process.stdout) == "building"
    process.communicate("\n", timeout=20)
    assert cache.prune() == []
    assert list(cache.folder.iterdir()) == []
    put(cache)
    with cache.lock(RECIPE):
        other = start()
        assert line(other.stderr).startswith("waiting for another process")
    assert line(other.stdout).startswith("found")


def test_threads_wait_for_each_other(cache: EngineCache) -> None:
    order = []

    def build() -> None:
        with cache.lock(RECIPE):
            order.append("other")

    with cache.lock(RECIPE), cache.lock(RECIPE):
        thread = threading.Thread(target=build)
        thread.start()
        time.sleep(0.1)
        put(cache)
        order.append("first")
    thread.join(timeout=20)
    assert order == ["first", "other"]
