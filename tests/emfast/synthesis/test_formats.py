"""What training code reads: imagefolder and WebDataset, with the libraries themselves."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import webdataset
from typer.testing import CliRunner

from emfast.cli.pack import pack
from emfast.data.image import read_image
from emfast.synthesis.manifest import read_manifest
from emfast.synthesis.pack import pack_set
from engines.errors import UserError
from tests.sets import contents

READ = """
import json, sys
import numpy
from datasets import load_dataset
source, kind, out = sys.argv[1:]
if kind == "imagefolder":
    rows = load_dataset("imagefolder", data_dir=source, split="train")
else:
    rows = load_dataset(source, split="train")
arrays = {name: numpy.stack([numpy.asarray(row[name]) for row in rows])
          for name in rows.column_names if name not in ("json", "__url__")}
numpy.savez(out, **arrays)
"""


def load(source: Path, kind: str, tmp_path: Path) -> dict[str, Any]:
    """Columns of a set as ``datasets`` reads it, in a process of its own without a network."""
    pytest.importorskip("datasets")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    out = tmp_path / "columns.npz"
    command = [sys.executable, "-c", READ, str(source), kind, str(out)]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=120)
    with np.load(out) as columns:
        return dict(columns)


@pytest.mark.parametrize("kind", ["imagefolder", "readme"])
def test_datasets_reads_the_folder(finished: Path, tmp_path: Path, kind: str) -> None:
    columns = load(finished, kind, tmp_path)
    listed = list(read_manifest(finished))
    assert list(columns)[:4] == ["image", "mask", "pair", "index"]
    assert columns["index"].tolist() == list(range(11))
    for index in (0, 10):
        for column, folder in (("image", "images"), ("mask", "masks")):
            expected = read_image(finished / folder / f"{index:06d}.png")
            np.testing.assert_array_equal(columns[column][index], expected)
    assert columns["pair"].shape == (11, 32, 48, 3)
    for name in listed[0]["scores"]:
        assert columns[name].tolist() == [entry["scores"][name] for entry in listed]


def test_datasets_reads_the_tars(finished: Path, tmp_path: Path) -> None:
    pack_set(finished, tmp_path / "tars", 4)
    columns = load(tmp_path / "tars", "readme", tmp_path)
    assert columns["__key__"].tolist() == [f"{i:06d}" for i in range(11)]
    expected = read_image(finished / "masks/000004.png")
    np.testing.assert_array_equal(columns["mask.png"][4], expected)


def test_webdataset_reads_the_tars(finished: Path, tmp_path: Path) -> None:
    packed = pack_set(finished, tmp_path / "tars", 4)
    assert (packed.written, packed.found, packed.images) == (3, 0, 11)
    urls = str(tmp_path / "tars/set-{000000..000002}.tar")
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("l8"))
    assert [sample["__key__"] for sample in samples] == [f"{i:06d}" for i in range(11)]
    for index, (sample, entry) in enumerate(zip(samples, read_manifest(finished), strict=True)):
        image = read_image(finished / f"images/{index:06d}.png")
        np.testing.assert_array_equal(sample["image.png"], image)
        assert sample["mask.png"].dtype == np.uint8
        np.testing.assert_array_equal(
            sample["mask.png"], read_image(finished / f"masks/{index:06d}.png")
        )
        assert sample["json"]["index"] == index
        assert {k: sample["json"][k] for k in entry["scores"]} == entry["scores"]
    pairs = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("pair.png")
    assert next(iter(pairs))[0].shape == (32, 48, 3)


def test_tars_are_the_same_every_time_and_go_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_set(finished, tmp_path / "whole", 4)
    whole = contents(tmp_path / "whole")
    again = tmp_path / "copy"
    shutil.copytree(finished, again)  # other times
    replace_file = os.replace
    for moment in itertools.count():
        left = moment

        def dies(*paths: Path) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            replace_file(*paths)

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", dies)
            try:
                pack_set(again, tmp_path / f"tars{moment}", 4)
            except KeyboardInterrupt:
                pass
            else:
                break
        pack_set(again, tmp_path / f"tars{moment}", 4)
        assert contents(tmp_path / f"tars{moment}") == whole
    assert moment == 8  # pack.json, three tars, manifest, contact sheet, card, tars.json
    (tmp_path / "whole/set-000001.tar").write_bytes(b"short")
    result = pack_set(finished, tmp_path / "whole", 4)
    assert (result.written, result.found) == (1, 2)
    assert contents(tmp_path / "whole") == whole


def test_what_is_not_packed(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a set that emfast drew"):
        pack_set(tmp_path, tmp_path / "tars")
    with pytest.raises(UserError, match="--per-tar 0"):
        pack_set(finished, tmp_path / "tars", 0)
    pack_set(finished, tmp_path / "tars", 4)
    with pytest.raises(UserError, match="tars: holds tars of 4 images a tar; give another --out"):
        pack_set(finished, tmp_path / "tars", 5)
    damaged = tmp_path / "damaged"
    shutil.copytree(finished, damaged)
    data = bytearray((damaged / "images/000003.png").read_bytes())
    data[50] ^= 255
    (damaged / "images/000003.png").write_bytes(data)
    with pytest.raises(UserError, match="000003.png: differs from the manifest; .* with --verify"):
        pack_set(damaged, tmp_path / "other")
    assert not list((tmp_path / "other").glob("*.tar*"))
    (damaged / "images/000003.png").unlink()
    with pytest.raises(UserError, match="000003.png: cannot be read .No such file"):
        pack_set(damaged, tmp_path / "other")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.txt").write_text("important")
    with pytest.raises(UserError, match="thesis: exists and is not a packed set"):
        pack_set(finished, tmp_path / "thesis")


def test_the_command(finished: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(pack)
    command = [str(finished), "--out", str(tmp_path / "tars"), "--per-tar", "6"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'tars'}: 11 images, tars: 2\n"
    again = CliRunner().invoke(app, command)
    assert again.stdout.endswith("tars: 2\n2 of them were there already\n")
