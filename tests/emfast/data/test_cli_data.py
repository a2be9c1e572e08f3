from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from emfast.cli.data import app
from emfast.data import fetch as fetching
from engines.errors import UserError


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (10, 64, 96), dtype=np.uint8)
    for kind, arrays in (("images", images), ("masks", (images > 128) * np.uint8(255))):
        (tmp_path / "stack" / kind).mkdir(parents=True)
        for i, array in enumerate(arrays):
            Image.fromarray(array).save(tmp_path / "stack" / kind / f"s{i}.png")
    return tmp_path / "stack"


@pytest.mark.parametrize("command", ["info", "split", "tiles", "fetch"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    output = run(command, "--help")
    assert f"Example: emfast data {command}" in re.sub(r"\s+", " ", output)


def test_info_tells_what_was_read(source: Path) -> None:
    output = run("info", source)
    assert re.search(rf"images: +{source}/images\n", output)
    assert re.search(rf"masks: +{source}/masks\n", output)
    assert re.search(r"slices: +10, s0 to s9\n", output)
    assert re.search(r"size: +96 x 64 pixels\n", output)
    assert re.search(r"grey: +mean 12\d\.\d, standard deviation 7\d\.\d\n", output)
    assert re.search(r"mask coverage: +(49|50)\.\d\d% of all pixels\n", output)


def test_info_without_masks(source: Path) -> None:
    output = run("info", source / "images")
    assert re.search(r"masks: +none\n", output)
    assert "coverage" not in output


def test_split_prints_and_writes_json(source: Path, tmp_path: Path) -> None:
    printed = json.loads(run("split", source, "--hold-out", "8-9", "--gap", "2"))
    assert printed["training"]["slices"] == "0-5"
    assert printed["holdout"]["names"] == ["s8", "s9"]
    assert (
        run("split", source, "--hold-out", "8-9", "--gap", "2", "--out", tmp_path / "s.json") == ""
    )
    assert json.loads((tmp_path / "s.json").read_text()) == printed
    with pytest.raises(UserError, match="there is no slice 10"):
        run("split", source, "--hold-out", "8-10")
    with pytest.raises(UserError, match="cannot be written"):
        run("split", source, "--hold-out", "8-9", "--out", tmp_path / "none" / "s.json")


def test_tiles_writes_images_and_masks(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiles"
    output = run("tiles", source, "--out", out, "--size", 32, "--slices", "0-1,9")
    assert output == f"45 tiles of 3 slices in {out}\n"
    assert len(list((out / "images").iterdir())) == len(list((out / "masks").iterdir())) == 45
    assert (out / "masks" / "s9_y0032_x0064_s32.png").exists()
    with pytest.raises(UserError, match="exists and is not empty"):
        run("tiles", source, "--out", out, "--size", 32)


def test_tiles_writes_rgb_pairs_of_the_slices_with_masks(source: Path, tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (source / "masks" / "s4.png").rename(tmp_path / "part" / "s4.png")
    options = ("--masks", tmp_path / "part", "--size", 32, "--stride", 32, "--rgb")
    run("tiles", source, "--out", tmp_path / "out", *options)
    assert len(list((tmp_path / "out" / "pairs").glob("s4_*.png"))) == 6
    assert len(list((tmp_path / "out").rglob("*.png"))) == 6


def test_tiles_of_the_paper(tmp_path: Path) -> None:
    path = tmp_path / "slice.png"
    Image.fromarray(np.zeros((768, 1024), np.uint8)).save(path)
    run("tiles", path, "--paper", "--out", tmp_path / "out")
    files = list((tmp_path / "out" / "images").iterdir())
    assert len(files) == 41
    assert sum(f.stem.endswith("_s512") for f in files) == 6
    assert {Image.open(f).size for f in files} == {(256, 256)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "65"], "65 x 65 pixels do not fit into slices of 96 x 64"),
        (["--size", "0"], "at least 1"),
        (["--size", "32", "--stride", "0"], "at least 1"),
        (["--paper", "--stride", "64"], "--paper sets size and stride itself"),
        (["--paper"], "do not fit"),
        (["--size", "32", "--slices", "3-12"], "no slice 12"),
        (["--size", "32", "--masks", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_tiles_refuses_what_it_cannot_do(
    source: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run("tiles", source, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves small files under the published names."""
    pytest.importorskip("pooch")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    for group in ("TRAINING", "TESTING"):
        files = []
        for file in getattr(fetching, group):
            (folder / file.name).write_bytes(file.name.encode() * 100)
            files.append(fetching.RemoteFile(file.name, len(file.name) * 100))
        monkeypatch.setattr(fetching, group, tuple(files))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_fetch_brings_the_training_stack_only(server: str, tmp_path: Path) -> None:
    out = tmp_path / "epfl"
    output = run("fetch", "--out", out, "--base-url", server)
    assert sorted(p.name for p in out.glob("*.tif")) == ["training.tif", "training_groundtruth.tif"]
    assert "recorded now; none was published to compare with" in output
    assert "Please cite Lucchi et al." in output
    assert "already there, size as published, SHA-256 as recorded" in run(
        "fetch", "--out", out, "--base-url", server
    )


def test_fetch_brings_the_testing_stack_when_asked(server: str, tmp_path: Path) -> None:
    run("fetch", "--out", tmp_path / "epfl", "--testing", "--base-url", server)
    assert len(list((tmp_path / "epfl").glob("*.tif"))) == 4


def test_fetch_offline_tells_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pooch")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(UserError, match=r"download training\.tif by hand from https://www\.epfl"):
        run("fetch", "--out", tmp_path, "--base-url", "http://127.0.0.1:1")
