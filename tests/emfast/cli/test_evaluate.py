from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from emfast.cli.evaluate import evaluate
from emfast.quality.overlap import confusion
from engines.errors import UserError

app = typer.Typer()
app.command()(evaluate)

RNG = np.random.default_rng(0)
PREDICTED = RNG.integers(0, 2, (4, 9, 11), dtype=np.uint8)
LABELLED = RNG.integers(0, 2, (4, 9, 11), dtype=np.uint8)


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    path = tmp_path / "predicted.tif"
    tifffile.imwrite(path, PREDICTED * np.uint8(255), photometric="minisblack")
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    folder = tmp_path / "labels"
    folder.mkdir()
    for i, mask in enumerate(LABELLED):
        Image.fromarray(mask * np.uint8(255)).save(folder / f"predicted{i:04d}.png")
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def cells(output: str) -> dict[str, list[str]]:
    """Rows of the table by their first cell."""
    rows = [line.strip("│┃ ").split("│") for line in output.splitlines() if "│" in line]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def scores(numbers: slice) -> list[str]:
    c = confusion(PREDICTED[numbers], LABELLED[numbers])
    return [f"{value:.4f}" for value in (c.dice, c.iou, c.precision, c.recall)]


def test_pooled_row(predictions: Path, labels: Path) -> None:
    result = invoke(predictions, labels)
    assert result.exit_code == 0, result.output
    assert cells(result.stdout) == {"all, pooled": scores(slice(None))}
    assert f"predictions: {predictions}\nlabels: {labels}\nslices: 0-3 (4 scored)\n" in (
        result.stdout
    )
    assert "left out" not in result.stdout


def test_rows_for_chosen_slices(predictions: Path, labels: Path) -> None:
    result = invoke(predictions, labels, "--slices", "1-2", "--per-slice")
    assert cells(result.stdout) == {
        "predicted0001": scores(slice(1, 2)),
        "predicted0002": scores(slice(2, 3)),
        "all, pooled": scores(slice(1, 3)),
    }


def test_partial_labels_are_said(predictions: Path, labels: Path) -> None:
    (labels / "predicted0003.png").unlink()
    result = invoke(predictions, labels)
    assert "slices: 0-2 (3 scored)" in result.stdout
    assert "predicted slices without labels, left out: 1" in result.stdout
    assert cells(result.stdout) == {"all, pooled": scores(slice(3))}


def test_json(predictions: Path, labels: Path, tmp_path: Path) -> None:
    result = invoke(predictions, labels, "--slices", "0,3", "--json", tmp_path / "scores.json")
    assert result.exit_code == 0, result.output
    values = json.loads((tmp_path / "scores.json").read_text())
    assert values["labels"] == str(labels)
    assert values["slices"] == "0,3"
    assert values["pooled"] == confusion(PREDICTED[[0, 3]], LABELLED[[0, 3]]).to_dict()
    assert len(values["per_slice"]) == values["scored"] == 2


def test_errors(predictions: Path, labels: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases = [
        ((predictions, tmp_path / "nowhere"), "nowhere: no such file or folder"),
        ((predictions, tmp_path / "empty"), "empty: holds no images"),
        ((predictions, labels, "--slices", "3-1"), "runs backwards"),
        ((predictions, labels, "--slices", "4"), "there is no slice 4"),
        ((predictions, labels, "--json", tmp_path / "no" / "file.json"), "cannot be written"),
    ]
    Image.new("L", (3, 3)).save(labels / "predicted0002.png")
    cases.append(((predictions, labels), "prediction is 11 x 9 pixels, but its label is 3 x 3"))
    for arguments, message in cases:
        result = invoke(*arguments, *(("--slices", "0") if "--json" in arguments else ()))
        assert result.exit_code == 1
        assert isinstance(result.exception, UserError), result.exception
        assert message in str(result.exception)
        assert "\n" not in str(result.exception)


def test_help_has_an_example() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert "Example: emfast evaluate" in result.stdout
