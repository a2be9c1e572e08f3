"""The commands as a user gives them, each with a cluster of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emfast.cluster import connection
from emfast.cluster.connection import connected
from engines.errors import UserError
from tests.emfast.cluster.processes import descendants
from tests.sets import digests

SCRIPT = "import sys; from emfast.cli.main import main; sys.argv[0] = 'emfast'; main()"


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-c", SCRIPT, *map(str, words)]


def draw(denoiser: Path, out: Path) -> list[str]:
    return command(
        *("generate", "--model", denoiser, "--count", "40", "--steps", "20", "--size", "128"),
        *("128", "--batch", "2", "--engine", "onnxruntime-cpu", "--threads", "1", "--out", out),
    )


def test_control_c_and_the_same_command(denoiser: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    out = tmp_path / "set"
    # As in a terminal, where all processes of the command get the signal.
    process = subprocess.Popen(
        [*draw(denoiser, out), "--ray", "local"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("manifest-*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    below = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert output == ""
    assert errors.startswith("ray: a new one on this machine, ")
    assert "of 40 images are written, and the same command goes on with the rest" in errors
    assert "Traceback" not in errors and "raylet" not in errors, errors
    assert below and not [pid for pid in below if Path(f"/proc/{pid}").exists()]
    assert not list(out.glob(".job.*"))
    subprocess.run(draw(denoiser, out), check=True, capture_output=True)
    subprocess.run(draw(denoiser, tmp_path / "whole"), check=True, capture_output=True)
    assert digests(out) == digests(tmp_path / "whole")


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("generate", ["--ray", "local", "--shard", "1/2"], "--ray cuts and shares it itself"),
        ("segment", ["--ray", "local", "--shard", "1/2"], "--ray cuts and shares it itself"),
        ("generate", ["--ray", "here"], "give auto, local or the address of a cluster"),
        ("segment", ["--ray", "127.0.0.1:1"], "no connection to a Ray cluster"),
    ],
)
def test_mistakes_are_one_line(
    denoiser: Path, tmp_path: Path, task: str, words: list[str], message: str
) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    source = Path("emfast/data/sample")
    given = ["--model", denoiser] if task == "generate" else [source]
    done = subprocess.run(
        command(task, *given, "--out", tmp_path / "out", *words),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_missing_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'emfast\[ray\]'"), connected("local"):
        pass


def test_the_environment_names_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 1.0)
    with pytest.raises(UserError, match="^RAY_ADDRESS 127.0.0.1:1: "), connected("auto"):
        pass


def test_a_note_of_a_cluster_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert connection._running_here() is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1\n")
    assert connection._running_here() is None
