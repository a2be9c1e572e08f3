"""The card of a set: enough to cite, repeat and judge it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from emfast.cli.main import app
from emfast.synthesis.card import card
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Job, run_job
from emfast.synthesis.manifest import read_manifest
from emfast.synthesis.summary import Summary
from engines.files import sha256
from tests.bundles import write_denoiser_bundle
from tests.sets import contents


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "job.json").read_text()))


def summary(folder: Path) -> Summary:
    gathered = Summary()
    for entry in read_manifest(folder):
        gathered.add(entry, 12)
    return gathered


def test_the_command_on_the_card_repeats_the_set(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    with Generator.open("epfl-denoiser", "onnxruntime-cpu", "int8", 2) as generator:
        run_job(Job(3, 5, 2, (64, 32), 3, True, "ddim", 0.25), generator, first)
    text = (first / "README.md").read_text()
    (command,) = re.findall(r"^```\n(emfast generate .*?)\n```$", text, re.MULTILINE | re.DOTALL)
    words = [
        str(again) if word == "SET" else word
        for word in shlex.split(command.replace("\\\n", ""))[1:]
    ]
    result = CliRunner().invoke(app, [*words, "--threads", "1", "--batch", "2"])
    assert result.exit_code == 0, result.output
    assert contents(again) == contents(first)


def test_what_the_card_says(finished: Path) -> None:
    text = (finished / "README.md").read_text()
    assert f"SHA-256 `{sha256(finished / 'manifest.jsonl')}`" in text
    assert record(finished)["model"]["sha256"] in text
    assert "# 11 synthetic labelled EM images" in text
    assert "48 x 32 pixels" in text  # width x height
    assert "BUNDLE is the folder of `test denoiser`" in text
    assert "The bundle of `test denoiser` tells nothing of the data" in text
    areas = [100 * entry["scores"]["mask_area"] for entry in read_manifest(finished)]
    assert f"| {np.mean(areas):.2f} % ({np.std(areas):.2f}) |" in text
    for name in re.findall(r"`(\w+\.\w+)`", text):
        assert (finished / name).is_file(), name
    assert "](contact.png)" in text


def test_a_shipped_bundle_brings_its_terms_and_scores(tmp_path: Path) -> None:
    with Generator.open("epfl-denoiser", "onnxruntime-cpu", threads=1) as generator:
        run_job(Job(1, 0, 1, (64, 64), 1, False), generator, tmp_path / "set")
        metrics = generator.bundle.manifest.metrics
    text = (tmp_path / "set/README.md").read_text()
    assert "# 1 synthetic labelled EM image\n" in text
    assert "A. Lucchi, Y. Li, K. Smith, P. Fua" in text
    tiles = metrics.pop("real tiles")  # stand beside the set's own scores
    told = f"{tiles['count']} real tiles of {tiles['size']} x {tiles['size']} pixels"
    assert told in " ".join(text.split())
    for group, scores in metrics.items():
        assert group in text
        assert all(name in text for name in scores)


def test_scores_of_real_tiles_stand_beside(finished: Path) -> None:
    described = record(finished)
    described["model"]["metrics"] = {
        "real tiles": {"count": 2, "size": 32, "area_fraction": 0.0631, "specks": 0.25},
        "64 images": {"Fréchet distance": 0.3},
    }
    text = card(described, summary(finished), "0" * 64)
    rows = dict(re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]*) \|$", text, re.MULTILINE))
    assert rows["area of the mask"] == "6.31 %"
    assert rows["components below 64 pixels, specks"] == "25.0 %"
    assert rows["mean grey"] == ""
    assert "2 real tiles of 32 x 32 pixels" in " ".join(text.split())
    assert "| Fréchet distance | 0.3 |" in text
    assert text.count("real tiles |") == 1


SELECTION: dict[str, Any] = {
    "command": "emfast select SET --real REAL --out CHOSEN",
    "drawn": 20,
}


def test_a_selected_set_says_so(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emfast.synthesis.card.selection_section", lambda _: "Eleven of twenty.")
    described = record(finished) | {"selection": SELECTION}
    text = card(described, summary(finished), "0" * 64)
    assert f"--rgb\n{SELECTION['command']}\n```" in text
    assert "--count 20" in text
    assert "## Selection\n\nEleven of twenty." in text
    assert "Nothing was selected" not in text


def test_several_classes(tmp_path: Path, finished: Path) -> None:
    described = record(finished)
    described["model"]["classes"] = 3
    text = card(described, summary(finished), "0" * 64)
    assert "0 for background and the labels 1 to 3" in text
    assert "mask > 0" not in text and "> 0\n" not in text


@pytest.mark.parametrize(
    ("images", "size"), [(11, "n<1K"), (1000, "1K<n<10K"), (100_000, "100K<n<1M")]
)
def test_the_size_in_the_header(finished: Path, images: int, size: str) -> None:
    gathered = summary(finished)
    gathered.images = images
    assert f"size_categories:\n- {size}\n" in card(record(finished), gathered, "0" * 64)


def test_the_heading_of_the_licence(tmp_path: Path) -> None:
    """It is found in any case and spelling, up to the next heading or the end."""
    from emfast.synthesis.description import _terms
    from engines.bundle import open_bundle

    bundle = open_bundle(write_denoiser_bundle(tmp_path / "denoiser"))
    assert _terms(bundle) is None
    (bundle.path / "README.md").write_text("# x\n\n## License\n\nAsk.\n\nTwice.\n\n## More\n\ny\n")
    assert _terms(bundle) == "Ask.\n\nTwice."
    (bundle.path / "README.md").write_text("# x\n\n## Data and licence\n\nAsk.\n")
    assert _terms(bundle) == "Ask."
