from __future__ import annotations

import json
import re
import shutil
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from emfast.cli.report import report
from emfast.quality import comparison, copies, draws
from emfast.quality.scores import SCORES
from engines.errors import UserError
from tests.bundles import write_segmenter_bundle
from tests.emfast.quality.sets_of_blobs import SIDE, cut, stack, write_network, write_set

app = typer.Typer()
app.command()(report)

REAL = stack()
COUNT = 16


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


class Inputs:
    """Folders of a real set and of bundles, and the options that name the bundles."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.real = write_set(folder / "real", *REAL)
        segmenter = write_segmenter_bundle(folder / "segmenter", threshold=0.99)
        self.options = ["--segmenter", segmenter, "--engine", "onnxruntime-cpu", "--threads", 1]
        self.options += ["--features", write_network(folder / "network.onnx")]

    def report(self, name: str, images: np.ndarray, masks: np.ndarray, *options: object) -> dict:
        """The values of a report on a synthetic set."""
        synthetic = write_set(self.folder / name, images, masks)
        out = self.folder / f"{name} report"
        result = invoke(self.real, synthetic, "--out", out, *self.options, *options)
        assert result.exit_code == 0, result.exception
        return dict(json.loads((out / "report.json").read_text()))


@pytest.fixture(autouse=True)
def _few_real_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """For time: fewer real tiles and draws than a real report has."""
    monkeypatch.setattr(comparison, "LEAST_REAL", 96)
    monkeypatch.setattr(copies, "CALIBRATION", 40)
    monkeypatch.setattr(draws, "DRAWS", 4)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("report"))


def test_a_set_of_copies(inputs: Inputs) -> None:
    """Tiles of the real slices themselves, turned: good by every score but the copies."""
    values = inputs.report("copies", *cut(*REAL, count=COUNT))
    scores = values["scores"]
    assert set(scores) == set(SCORES)
    assert scores["near_copies"]["synthetic"]["mean"] == 1
    assert scores["suspects"]["synthetic"]["mean"] == 1
    assert scores["suspects"]["real"]["mean"] == pytest.approx(1 / 41)
    assert scores["similarity"]["synthetic"]["mean"] > 0.999
    assert scores["similarity"]["real"]["mean"] < 0.8
    for name in ("frechet", "spectrum", "patterns_1", "patterns_3"):
        row = scores[name]
        assert row["synthetic"]["mean"] < 2 * row["real"]["mean"]
        assert row["synthetic"]["deviation"] > 0 and len(row["halves"]) == 1
    for name in ("area_fraction", "components", "dice", "diversity"):
        row = scores[name]
        assert row["synthetic"]["mean"] == pytest.approx(row["real"]["mean"], rel=0.5)
        assert row["synthetic"]["deviation"] is None and len(row["halves"]) == 2
    assert values["images_a_side"] == COUNT and values["searched_for_copies"] == COUNT
    assert values["real"]["slices"] == 12 and values["synthetic"]["size"] == SIDE
    first = values["per_image"][0]
    assert first["image"] == "000000" and first["nearest"]["near_copy"] is True
    slice_, y, x = first["nearest"]["slice"], first["nearest"]["y"], first["nearest"]["x"]
    assert 0 <= int(slice_) < 12 and 0 <= y <= 120 - SIDE and 0 <= x <= 150 - SIDE


def test_a_set_of_the_same_kind_and_a_bad_one(inputs: Inputs) -> None:
    other = cut(*stack(seed=77), count=COUNT)
    good = inputs.report("good", *other)
    assert good["scores"]["near_copies"]["synthetic"]["mean"] == 0
    assert good["scores"]["suspects"]["synthetic"]["mean"] <= 3 / COUNT
    assert len(good["per_image"]) == COUNT
    noise = np.random.default_rng(0).integers(0, 256, other[0].shape, dtype=np.uint8)
    bad = inputs.report("bad", noise, np.roll(other[1], 1, axis=0))
    for name in ("frechet", "kernel", "grey", "spectrum", "patterns_1", "patterns_3"):
        worse, better = (v["scores"][name]["synthetic"]["mean"] for v in (bad, good))
        assert worse > 3 * better, name
        assert bad["scores"][name]["real"] == good["scores"][name]["real"]
    for name in ("precision", "coverage", "dice"):
        worse, better = (v["scores"][name]["synthetic"]["mean"] for v in (bad, good))
        assert worse < 0.5 * better, name
    assert bad["scores"]["area_fraction"] == good["scores"]["area_fraction"]


def test_the_page_holds_all_it_shows(inputs: Inputs) -> None:
    images, masks = cut(*stack(seed=5), count=COUNT)
    # Without any object: many scores have nothing to stand on.
    inputs.report("<b>empty & co", images, np.zeros_like(masks), "--limit", 9)
    page = (inputs.folder / "<b>empty & co report/report.html").read_text()
    assert "<b>empty" not in page and "&lt;b&gt;empty &amp; co, 9 of 16 images" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) > 40 and all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"url\(|@import|<script|<link|http", re.sub('"data:[^"]*"', "", page))
    for source in sources:
        kind, content = source.split(";base64,")
        if kind == "data:image/jpeg":
            assert Image.open(BytesIO(b64decode(content))).size == (SIDE, SIDE)
        else:
            assert b64decode(content).decode().lstrip().startswith("<?xml")
    for score in SCORES.values():
        assert score.title in page
    assert "n/a" in page and 'name="viewport"' in page


def test_the_terminal_shows_the_scores(inputs: Inputs) -> None:
    synthetic = write_set(inputs.folder / "shown", *cut(*REAL, count=9))
    result = invoke(inputs.real, synthetic, "--out", inputs.folder / "out", *inputs.options)
    assert "engine: onnxruntime-cpu" in result.stderr
    for title in ("reading the real set", "measuring real tiles", "comparing", "searching copies"):
        assert f"{title} " in result.stderr
    assert re.search(r"Near copies +100 %   real 0 %", result.stdout)
    assert re.search(r"Fréchet distance +[\d.]+ ± [\d.]+   real [\d.]+ ± [\d.]+\n", result.stdout)
    assert "report.html" in result.stdout.splitlines()[-1]


def test_errors(inputs: Inputs, tmp_path: Path) -> None:
    images, masks = cut(*REAL, count=12)
    synthetic = write_set(tmp_path / "synthetic", images, masks)
    few = write_set(tmp_path / "few", images[:5], masks[:5])
    large = write_set(tmp_path / "large", *(a.repeat(4, 1).repeat(4, 2) for a in (images, masks)))
    tiny = write_set(tmp_path / "tiny", images[:, :16, :16], masks[:, :16, :16])
    flat = write_set(tmp_path / "flat", images[:, :40], masks[:, :40])
    full = tmp_path / "full"
    shutil.copytree(few, full)
    cases = [
        ((inputs.real, tmp_path / "nowhere"), "nowhere: no such folder"),
        ((tmp_path / "synthetic/images", synthetic), "has no masks"),
        ((inputs.real, few), "5 synthetic images; a report needs at least 8"),
        ((inputs.real, synthetic, "--limit", 3), "3 synthetic images; a report needs"),
        ((inputs.real, large), "tiles of 192 x 192 pixels do not fit into slices of 150 x 120"),
        ((inputs.real, tiny), "16 x 16 pixels; a report needs at least 32 x 32"),
        ((inputs.real, flat), "48 x 40 pixels"),
        ((few, synthetic), "a report needs at least 8 in either half of the stack"),
        ((inputs.real, synthetic, "--segmenter", tmp_path), "is not a bundle"),
        ((inputs.real, synthetic, "--features", tmp_path / "a.onnx"), "no such file"),
    ]
    for arguments, message in cases:
        options = [o for o in inputs.options if "--segmenter" not in arguments]
        if "--features" in arguments:
            options = options[:-2]
        out = tmp_path / "out"
        result = invoke(*arguments, "--out", out, *options)
        assert result.exit_code == 1 and isinstance(result.exception, UserError), message
        assert message in str(result.exception) and "\n" not in str(result.exception)
        assert not out.exists()
    result = invoke(inputs.real, synthetic, "--out", full, *inputs.options)
    assert "exists and is not empty" in str(result.exception)


def test_a_missing_library_is_named(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    from emfast.cli import requirements

    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "prdc" else name)
    result = invoke(inputs.real, inputs.real, "--out", inputs.folder / "nothing", *inputs.options)
    assert "this command needs prdc; install it: pip install 'emfast[report]'" in str(
        result.exception
    )


def test_help_has_an_example() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert "Example: emfast report" in result.stdout
