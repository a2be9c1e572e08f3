from __future__ import annotations

import csv
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from emfast.data.stack import Stack
from emfast.training.checkpoint import load_checkpoint, save_checkpoint
from emfast.training.denoiser import DenoiserTask, train_denoiser
from emfast.training.presets import (
    DENOISER_PRESETS,
    SEGMENTER_PRESETS,
    SegmenterSettings,
)
from emfast.training.revision import revision
from emfast.training.segmenter import SegmenterTask, train_segmenter
from emfast.training.trainer import (
    CHECKPOINT,
    LOCK,
    Trainer,
    append_row,
    ema_exponent,
    learning_rate,
    truncate_rows,
)
from engines.errors import UserError

DENOISER = DENOISER_PRESETS["default"].override(
    widths=(16, 16), blocks=1, steps=20, crops=((32, 2),), iterations=6, warmup=2, sample_every=4
)
SEGMENTER = SEGMENTER_PRESETS["default"].override(
    crops=((32, 2),), iterations=6, warmup=2, validate_every=3
)


class KilledError(Exception):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, iteration: int) -> None:
    """Die without warning in the middle of an iteration, one checkpoint before it."""
    step = Trainer._step

    def dies(self: Trainer) -> dict[str, Tensor]:
        if self.iteration == iteration:
            raise KilledError
        return step(self)

    monkeypatch.setattr(Trainer, "_step", dies)


def tensors(folder: Path) -> dict[str, Tensor]:
    groups, _ = load_checkpoint(folder / CHECKPOINT)
    return {f"{g}/{n}": t for g, members in groups.items() for n, t in members.items()}


@pytest.mark.parametrize("kind", ["denoiser", "segmenter"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    kind: str, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: str) -> None:
        if kind == "denoiser":
            train_denoiser(DENOISER, stack, {}, tmp_path / folder, "cpu")
        else:
            train_segmenter(SEGMENTER, stack, stack, {}, tmp_path / folder, "cpu")

    train("whole")
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(KilledError):
            train("killed")
    saved = {"denoiser": 4, "segmenter": 3}[kind]
    assert load_checkpoint(tmp_path / "killed" / CHECKPOINT)[1]["iteration"] == saved
    (tmp_path / "killed/.latest.123.tmp.safetensors").write_bytes(b"what a kill left")
    train("killed")
    assert [p.name for p in (tmp_path / "killed").glob(".*")] == [LOCK]
    whole, killed = tensors(tmp_path / "whole"), tensors(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name]), name
    for log in ("log.csv", "scores.csv"):
        rows = [list(csv.DictReader((tmp_path / f / log).open())) for f in ("whole", "killed")]
        for row in (*rows[0], *rows[1]):
            row.pop("seconds", None)
        assert rows[0] == rows[1]
    assert (tmp_path / "killed/loss.png").is_file()


def test_samples_are_drawn_during_training(stack: Stack, tmp_path: Path) -> None:
    settings = DENOISER.override(sample_every=3)
    train_denoiser(settings, stack, {}, tmp_path / "run", "cpu")
    names = sorted(p.name for p in (tmp_path / "run/samples").iterdir())
    assert names == ["0000003.png", "0000006.png"]


def test_a_run_learns(stack: Stack, tmp_path: Path) -> None:
    settings = SEGMENTER.override(
        iterations=60, crops=((48, 4),), learning_rate=3e-3, validate_every=60
    )
    train_segmenter(settings, stack, stack, {}, tmp_path / "run", "cpu")
    with (tmp_path / "run/log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_run_computes_in_what_its_checkpoint_tells(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = set()
    for has_bf16, name in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has_bf16: {"bf16": has})
        trainer = train_segmenter(SEGMENTER, stack, None, {}, tmp_path / name, "cpu")
        _, meta = load_checkpoint(trainer.folder / CHECKPOINT)
        assert meta["hardware"]["computed_in"] == name
        assert meta["emfast"] == {"from iteration 0": revision()}
        with (tmp_path / name / "log.csv").open() as file:
            losses.add(next(csv.DictReader(file))["loss"])
    assert len(losses) == 2


def test_other_settings_are_refused(stack: Stack, tmp_path: Path) -> None:
    train_denoiser(DENOISER, stack, {}, tmp_path / "run", "cpu")
    with pytest.raises(UserError, match="seed was 0, is 1"):
        train_denoiser(DENOISER.override(seed=1), stack, {}, tmp_path / "run", "cpu")


def test_a_run_may_be_made_longer(stack: Stack, tmp_path: Path) -> None:
    train_denoiser(DENOISER, stack, {}, tmp_path / "run", "cpu")
    longer = DENOISER.override(iterations=8)
    assert train_denoiser(longer, stack, {}, tmp_path / "run", "cpu").iteration == 8


def test_a_run_is_not_made_shorter_than_it_is(stack: Stack, tmp_path: Path) -> None:
    train_denoiser(DENOISER, stack, {}, tmp_path / "run", "cpu")
    before = (tmp_path / "run/run.json").read_bytes()
    with pytest.raises(UserError, match="6 iterations are done, more than 5; give as many or more"):
        train_denoiser(DENOISER.override(iterations=5), stack, {}, tmp_path / "run", "cpu")
    assert (tmp_path / "run/run.json").read_bytes() == before


def test_the_run_of_another_network_is_refused(stack: Stack, tmp_path: Path) -> None:
    train_denoiser(DENOISER, stack, {}, tmp_path / "run", "cpu")
    with pytest.raises(UserError, match="run of a denoiser, and this one trains a segmenter"):
        train_segmenter(SEGMENTER, stack, None, {}, tmp_path / "run", "cpu")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_run_that_other_code_goes_on_with_tells_both(
    legacy: bool,
    stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run" / CHECKPOINT
    monkeypatch.setattr("emfast.training.trainer.revision", lambda: "0.1.0, commit a")
    train_denoiser(DENOISER, stack, {}, tmp_path / "run", "cpu")
    if legacy:
        groups, meta = load_checkpoint(path)
        save_checkpoint(path, groups, {**meta, "emfast": "0.1.0, commit a"})
    monkeypatch.setattr("emfast.training.trainer.revision", lambda: "0.1.0, commit b")
    train_denoiser(DENOISER.override(iterations=8), stack, {}, tmp_path / "run", "cpu")
    both = {"from iteration 0": "0.1.0, commit a", "from iteration 6": "0.1.0, commit b"}
    assert load_checkpoint(path)[1]["emfast"] == both
    assert "is trained by emfast 0.1.0, commit b from here on" in capsys.readouterr().out


def test_logs_keep_whole_rows_and_their_header(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    for iteration in (20, 40):
        append_row(log, {"iteration": iteration, "loss": 0.5})
    with log.open("a") as file:
        file.write("6")
    truncate_rows(log, 40)
    assert log.read_text().split() == ["iteration,loss", "20,0.5", "40,0.5"]
    truncate_rows(log, 10)
    append_row(log, {"iteration": 20, "loss": 0.25})
    assert log.read_text().split() == ["iteration,loss", "20,0.25"]


def test_a_full_disk_tears_no_row(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    append_row(log, {"iteration": 20, "loss": 0.5})
    before = log.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 1, limits[1]))
    try:
        with pytest.raises(UserError, match=r"log\.csv: cannot be written .* goes on"):
            append_row(log, {"iteration": 40, "loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.read_bytes() == before


def test_a_loss_that_is_not_a_number_stops(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_denoiser(DENOISER, stack, {}, tmp_path / "run", "cpu")
    good = (tmp_path / "run" / CHECKPOINT).read_bytes()
    losses = DenoiserTask.losses

    def explodes(self: DenoiserTask, iteration: int) -> dict[str, Tensor]:
        result = losses(self, iteration)
        return {**result, "loss": result["loss"] * float("nan")}

    monkeypatch.setattr(DenoiserTask, "losses", explodes)
    with pytest.raises(UserError, match="not a number at iteration 7; .* last good checkpoint"):
        train_denoiser(DENOISER.override(iterations=9), stack, {}, tmp_path / "run", "cpu")
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == good


def test_weights_that_are_not_numbers_are_not_saved(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient may overflow where the loss does not."""

    def overflows(self: DenoiserTask) -> None:
        next(self.network.parameters()).data.fill_(float("inf"))

    monkeypatch.setattr(DenoiserTask, "after_step", overflows)
    settings = DENOISER.override(iterations=1)
    with pytest.raises(UserError, match="network is not a number at iteration 1; nothing was sav"):
        train_denoiser(settings, stack, {}, tmp_path / "run", "cpu")
    assert not (tmp_path / "run" / CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crops": ((100, 2),)}, "multiple of 16"),
        ({"crops": ((32, 0),)}, "at least one"),
        ({"learning_rate": -1.0}, "give a number above 0"),
        ({"learning_rate": float("nan")}, "give a number above 0"),
        ({"iterations": 0}, "at least 1 is needed"),
        ({"seed": -1}, "seed -1 is outside"),
        ({"epochs": 2, "crops": ((128, 2),)}, "crops of another size go with --preset default"),
    ],
)
def test_values_that_no_training_can_have(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SEGMENTER, **values).complete(10, 16)


def test_epochs_make_iterations_unless_they_are_given() -> None:
    paper = SEGMENTER_PRESETS["paper"]
    assert paper.complete(1722, 16).iterations == 200 * 246
    assert paper.override(iterations=5).complete(1722, 16).iterations == 5


def test_a_folder_that_holds_something_else_is_refused(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("mine")
    with pytest.raises(UserError, match="holds files but no run"):
        train_denoiser(DENOISER, stack, {}, tmp_path, "cpu")
    assert (tmp_path / "log.csv").read_text() == "mine"


def test_a_folder_that_another_process_trains_in_is_refused(stack: Stack, tmp_path: Path) -> None:
    first = train_denoiser(DENOISER, stack, {}, tmp_path / "run", "cpu")
    hold = (
        "import sys, time\nfrom filelock import FileLock\n"
        "with FileLock(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    command = [sys.executable, "-c", hold, str(first.folder / LOCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        longer = DENOISER.override(iterations=8)
        with pytest.raises(UserError, match="another process trains in it"):
            train_denoiser(longer, stack, {}, first.folder, "cpu")
        other.kill()
    assert train_denoiser(longer, stack, {}, first.folder, "cpu").iteration == 8


def test_other_data_is_told_in_a_few_words(stack: Stack, tmp_path: Path) -> None:
    train_denoiser(DENOISER, stack, {"slices": list(range(99))}, tmp_path / "run", "cpu")
    with pytest.raises(UserError, match="other data: slices") as error:
        train_denoiser(DENOISER, stack, {"slices": list(range(98))}, tmp_path / "run", "cpu")
    assert len(str(error.value)) < 200 + len(str(tmp_path))


def test_the_paper_presets_count_epochs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 512, 512), dtype=np.uint8)
    stack = Stack(images, (images > 128).astype(np.uint8), ("a",), "noise")
    # 9 tiles of 256 x 256 and 1 at half scale: one epoch is one batch of 16 for the denoiser.
    task = DenoiserTask(DENOISER_PRESETS["paper"], stack, torch.device("cpu"))
    assert task.images.shape == (10, 256, 256)
    assert [c.clip for c in task.channels] == [(-1.0, 1.0), (-1.0, 1.0)]
    assert task.schedule.prediction == "epsilon"
    settings = SEGMENTER_PRESETS["paper"]
    segmenter = SegmenterTask(settings, stack, None, torch.device("cpu"))
    x, target = segmenter._batch(0)
    assert x.shape == target.shape == (7, 1, 256, 256)
    assert 0 <= x.min() and x.max() <= 1
    assert segmenter._batch(1)[0].shape[0] == 3


def test_learning_rates() -> None:
    cosine = replace(SEGMENTER, iterations=100, warmup=10, learning_rate=1.0)
    assert learning_rate(cosine, 0) == pytest.approx(0.1)
    assert learning_rate(cosine, 10) == pytest.approx(1.0)
    assert learning_rate(cosine, 55) == pytest.approx(0.5)
    linear = replace(cosine, decay="linear")
    assert learning_rate(linear, 79) == 1.0
    assert learning_rate(linear, 90) == pytest.approx(0.5)
    paper: SegmenterSettings = SEGMENTER_PRESETS["paper"].override(iterations=300)
    rates = [learning_rate(paper, i) for i in (0, 99, 100, 200, 299)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-6, 1e-6])


def test_the_average_has_the_asked_width() -> None:
    gamma = ema_exponent(0.05)
    # EDM2, eq. 123: relative standard deviation of the averaging profile.
    width = (gamma + 1) ** 0.5 * (gamma + 2) ** -1 * (gamma + 3) ** -0.5
    assert width == pytest.approx(0.05)


def test_crops_larger_than_the_slices_are_refused(stack: Stack, tmp_path: Path) -> None:
    settings = DENOISER.override(crops=((128, 2),))
    with pytest.raises(UserError, match="96 x 96 pixels are smaller than the training crops"):
        train_denoiser(settings, stack, {}, tmp_path / "run", "cpu")
