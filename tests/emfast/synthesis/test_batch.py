"""``--batch auto``: what is tried, what is taken, and that a set keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from emfast.cli.main import app
from emfast.synthesis import batch as batch_module
from emfast.synthesis.batch import Trial, fastest_batch, parse_batch, recorded_batch
from emfast.synthesis.denoiser import Generator, Place
from engines.errors import UserError
from tests.bundles import write_denoiser_bundle

SIZE = (32, 48)


@pytest.fixture
def generator(tmp_path: Path) -> Generator:
    bundle = write_denoiser_bundle(tmp_path / "denoiser")
    return Generator.open(bundle, "onnxruntime-cpu", threads=1)


class Clock:
    """A machine on which a step of a batch takes what a table says, and memory ends somewhere."""

    def __init__(self, seconds: dict[int, float], most: int = 1000) -> None:
        self._seconds, self._most = seconds, most
        self.now = 0.0
        self.spec = type("Spec", (), {"schedule": type("Schedule", (), {"steps": 700})})

    def perf_counter(self) -> float:
        return self.now

    def prepare(self, batch: int, size: object) -> Place:
        return Place("device") if batch <= self._most else Place("host", "none left", True)

    def draw(self, indices: range, seed: int, steps: int, size: object) -> None:
        if len(indices) not in self._seconds:
            raise UserError("the network cannot take it")
        self.now += steps * self._seconds[len(indices)]


def choose(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> tuple[int, list[Trial]]:
    monkeypatch.setattr(batch_module.time, "perf_counter", clock.perf_counter)
    trials: list[Trial] = []
    stand_in: Any = clock
    return fastest_batch(stand_in, SIZE, tell=trials.append), trials


def test_the_fastest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    best, trials = choose(monkeypatch, Clock({1: 1.0, 2: 1.5, 4: 2.4, 8: 4.78, 16: 9.6, 32: 1.0}))
    assert best == 4  # 8 gains less than 2 %; after two that do not gain the search ends
    assert [trial.batch for trial in trials] == [1, 2, 4, 8, 16]
    assert str(trials[2]) == "batch 4: 600 ms a step and image"


def test_the_search_ends_at_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    best, trials = choose(monkeypatch, Clock({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, most=4))
    assert best == 4
    assert str(trials[-1]) == "batch 8: does not fit in the device's memory"


def test_the_search_ends_at_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    best, trials = choose(monkeypatch, Clock({1: 1.0, 2: 1.0}))
    assert best == 2
    assert str(trials[-1]) == "batch 4: the network cannot take it"


def test_not_even_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no batch can be drawn: batch 1: does not fit"):
        choose(monkeypatch, Clock({}, most=0))


def test_a_real_engine_is_measured(generator: Generator) -> None:
    trials: list[Trial] = []
    assert fastest_batch(generator, SIZE, 2, trials.append) in (1, 2)
    assert [trial.batch for trial in trials] == [1, 2]
    assert all(trial.seconds is not None and trial.seconds > 0 for trial in trials)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", ""])
def test_other_batches_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="give a number of images from 1, or auto"):
        parse_batch(text)


def test_a_set_keeps_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an engine whose images depend on the batch."""
    bundle, out = write_denoiser_bundle(tmp_path / "denoiser"), tmp_path / "set"
    monkeypatch.setattr("emfast.synthesis.job.BATCH_INVARIANT", ())
    choices = iter([2])
    monkeypatch.setattr(batch_module, "fastest_batch", lambda *_, **__: next(choices))
    command = ["generate", "--model", str(bundle), "--engine", "onnxruntime-cpu", "--steps", "3"]
    command += ["--size", "32", "48", "--out", str(out), "--threads", "1", "--batch", "auto"]
    assert recorded_batch(out) is None
    for count in ("2", "3"):  # the second run must not choose again
        result = CliRunner().invoke(app, [*command, "--count", count])
        assert result.exit_code == 0, result.output
        assert "batch: 2\nloop: on the host (onnxruntime-cpu shares no" in result.stderr
    record = json.loads((out / "job.json").read_text())
    assert (record["batch"], record["loop"]) == (2, "host")
    assert recorded_batch(out) == 2
