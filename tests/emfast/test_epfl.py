"""The whole way on the real stack: tiles, training, export, generating, segmenting, scores."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from emfast.data.image import read_image
from engines.bundle import open_bundle

EMFAST = Path(sys.executable).with_name("emfast")
HELD_OUT = "140-164"
TIMEOUT = 300


def emfast(*arguments: str | Path) -> str:
    command = [str(EMFAST), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def emfast_killed(*arguments: str | Path, when: Callable[[], bool]) -> None:
    """Start a command and kill it, without a chance to clean up, as soon as ``when`` is true."""
    command = [str(EMFAST), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    start = time.monotonic()
    while not when():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() - start < TIMEOUT
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_from_the_stack_to_scores(epfl: Path, tmp_path: Path) -> None:
    tiles, runs, bundles = tmp_path / "tiles", tmp_path / "runs", tmp_path / "bundles"
    emfast("data", "tiles", epfl, "--paper", "--slices", "150,151", "--out", tiles)
    assert len(list((tiles / "images").iterdir())) == 2 * 41

    # Both trainings, killed after a checkpoint and taken up again.
    for kind, options in (
        ("denoiser", ["--crop", "64", "--batch", "2", "--sample-every", "3"]),
        ("segmenter", ["--crop", "128", "--batch", "2", "--validate-every", "3"]),
    ):
        run = runs / kind
        command = ["train", kind, "--data", str(epfl), "--hold-out", HELD_OUT, "--out", str(run)]
        command += ["--iterations", "6", "--device", "cpu", *options]
        emfast_killed(*command, when=(run / "latest.safetensors").exists)
        assert "goes on from iteration 3 of 6" in emfast(*command)
    whole_run = [str(runs / "whole") if part == str(run) else part for part in command]
    emfast(*whole_run)
    groups, whole_groups = (
        load_file(runs / n / "latest.safetensors") for n in ("segmenter", "whole")
    )
    assert groups.keys() == whole_groups.keys()
    assert all(np.array_equal(groups[name], whole_groups[name]) for name in groups)

    emfast("export", runs / "segmenter", "--out", bundles / "segmenter", "--data", epfl)
    options = ["--data", str(epfl), "--trajectory-steps", "10"]
    emfast("export", runs / "denoiser", "--out", bundles / "denoiser", *options)
    manifest = open_bundle(bundles / "denoiser", "denoiser").manifest
    assert len(manifest.training["data"]["slices"]) == 135
    assert manifest.training["data"]["held_out"][0] == "training0140"

    # Generation, killed after the first image.
    drawn, whole = tmp_path / "drawn", tmp_path / "whole"
    options = ["--model", str(bundles / "denoiser"), "--count", "4", "--batch", "1"]
    options += ["--steps", "10", "--size", "128", "128", "--seed", "3"]
    emfast_killed("generate", "--out", drawn, *options, when=(drawn / "images/000000.png").exists)
    emfast("generate", "--out", drawn, *options)
    emfast("generate", "--out", whole, *options)
    assert files(drawn) == files(whole)
    assert len((drawn / "manifest.jsonl").read_text().splitlines()) == 4

    slices = tmp_path / "slices"
    slices.mkdir()
    for number in (150, 151):
        shutil.copy(epfl / f"training/images/training{number:04d}.png", slices)
    masks = tmp_path / "masks"
    emfast("segment", slices, "--out", masks, "--model", bundles / "segmenter")
    scores = tmp_path / "scores.json"
    assert re.search(r"slices: +165, training0000 to training0164", emfast("data", "info", epfl))
    labels = tmp_path / "labels"
    labels.mkdir()
    for number in (150, 151):
        shutil.copy(epfl / f"training/masks/training{number:04d}.png", labels)
    emfast("evaluate", masks / "masks", labels, "--json", scores)
    predicted, true = (
        np.stack([read_image(folder / f"training{n:04d}.png") for n in (150, 151)]) > 0
        for folder in (masks / "masks", labels)
    )
    dice = 2 * (predicted & true).sum() / (predicted.sum() + true.sum())
    assert json.loads(scores.read_text())["pooled"]["dice"] == pytest.approx(dice)


def test_the_shipped_segmenter_reaches_its_score(epfl: Path, tmp_path: Path) -> None:
    """The Dice of its card on three slices of the held-out block, within slice to slice spread."""
    slices, labels = tmp_path / "slices", tmp_path / "labels"
    for folder, kind in ((slices, "images"), (labels, "masks")):
        folder.mkdir()
        for number in (142, 152, 162):
            shutil.copy(epfl / f"training/{kind}/training{number:04d}.png", folder)
    emfast("segment", slices, "--out", tmp_path / "out")
    emfast("evaluate", tmp_path / "out/masks", labels, "--json", tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["pooled"]["dice"] > 0.85


def test_the_segmenter_of_the_other_labels_reaches_its_score(epfl: Path, tmp_path: Path) -> None:
    """On all slices that its card tells of, and worse against the labels it did not learn from."""
    masks = epfl.parent / "epfl6" / "mitochondria"
    if not masks.is_dir():
        pytest.skip("the second annotation is not beside the EPFL stack")
    slices = tmp_path / "slices"
    slices.mkdir()
    for number in range(161, 165):
        shutil.copy(epfl / f"training/images/training{number:04d}.png", slices)
    out = tmp_path / "out"
    emfast("segment", slices, "--model", "epfl6-segmenter", "--out", out)
    dice = []
    for labels, numbers in ((masks, "38-41"), (epfl, "161-164")):
        emfast("evaluate", out, labels, "--slices", numbers, "--json", tmp_path / "scores.json")
        dice.append(json.loads((tmp_path / "scores.json").read_text())["pooled"]["dice"])
    assert dice == pytest.approx([0.911, 0.834], abs=0.002)
