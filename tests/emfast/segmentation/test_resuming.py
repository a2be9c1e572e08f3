"""Runs that are killed, shared, repeated or of another kind; with real readers and writers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from emfast.segmentation.job import segment_files
from emfast.segmentation.outputs import Outputs
from emfast.segmentation.record import RECORD, SLICES, Record
from emfast.segmentation.result import Segmented
from emfast.segmentation.segmenter import Segmenter
from emfast.segmentation.settings import Settings
from emfast.synthesis.shard import Shard
from engines.errors import UserError
from tests.bundles import write_segmenter_bundle

zarr = pytest.importorskip("zarr")

SIZE = (40, 56)
ENGINE = "onnxruntime-cpu"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_segmenter_bundle(tmp_path / "bundle")


@pytest.fixture
def segmenter(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Segmenter]:
    monkeypatch.setattr("emfast.segmentation.segmenter.BATCH_PIXELS", 2 * SIZE[0] * SIZE[1])
    with Segmenter.open(bundle, ENGINE, threads=1) as segmenter:
        yield segmenter


def volume(slices: int = 13) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (slices, *SIZE), dtype=np.uint8)


def write_images(folder: Path, stack: npt.NDArray[Any]) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(stack):
        Image.fromarray(image).save(folder / f"s{i:03d}.png")
    return folder


def write_zarr(path: Path, stack: npt.NDArray[Any], chunk: int = 4) -> Path:
    zarr.create_array(
        str(path), data=stack, chunks=(chunk, 32, 32), dimension_names=("z", "y", "x")
    )
    return path


def write_tiff(path: Path, stack: npt.NDArray[Any]) -> Path:
    tifffile.imwrite(path, stack, photometric="minisblack")
    return path


WRITE = {"images": write_images, "zarr": write_zarr, "tiff": write_tiff}
NAME = {"images": "in", "zarr": "in.zarr", "tiff": "in.tif"}


def hashes(out: Path) -> dict[str, str]:
    """Hashes of all that a run leaves; nothing hidden may be left."""
    files = {str(p.relative_to(out)): p for p in sorted(out.rglob("*")) if p.is_file()}
    assert not [name for name in files if re.search(r"/\.\w.*(tmp|partial)", f"/{name}")]
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if name not in (RECORD, SLICES)
    }


def command(source: Path, bundle: Path) -> list[str]:
    """The command line in a process of its own, without ``--out``."""
    return [
        sys.executable, "-c", "from emfast.cli.main import main; main()", "segment", str(source),
        "--model", str(bundle), "--engine", ENGINE, "--threads", "1",
    ]  # fmt: skip


def stop_after(monkeypatch: pytest.MonkeyPatch, slices: int) -> None:
    """Let runs fail when so many slices are written."""
    take, count = Outputs.take, 0

    def failing(self: Any, item: Any) -> None:
        nonlocal count
        if count == slices:
            raise UserError("power cut")
        count += 1
        take(self, item)

    monkeypatch.setattr(Outputs, "take", failing)


@pytest.mark.parametrize("median", [1, 3])
@pytest.mark.parametrize("kind", ["images", "zarr", "tiff"])
def test_a_run_that_stopped_goes_on_to_the_same_bytes(
    tmp_path: Path,
    segmenter: Segmenter,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    median: int,
) -> None:
    source = WRITE[kind](tmp_path / NAME[kind], volume())
    settings = Settings(median=median, probability="float32", overlay=True)
    segment_files(source, tmp_path / "whole", segmenter, settings)
    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(UserError, match="power cut"):
            segment_files(source, out, segmenter, settings)
    assert json.loads((out / RECORD).read_text())["complete"] is False
    if kind != "images":
        assert not (out / "masks" / source.name).exists()
    result = segment_files(source, out, segmenter, settings)
    assert result.found == (0 if kind == "tiff" else 8)
    assert hashes(out) == hashes(tmp_path / "whole")
    records = [json.loads((o / RECORD).read_text()) for o in (out, tmp_path / "whole")]
    assert records[0] == records[1]
    again = segment_files(source, out, segmenter, settings)
    assert again.found == 13
    assert hashes(out) == hashes(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["images", "zarr"])
def test_shards_end_with_the_bytes_of_one_run(
    tmp_path: Path, segmenter: Segmenter, kind: str
) -> None:
    source = WRITE[kind](tmp_path / NAME[kind], volume())
    settings = Settings(median=3, probability="uint8")
    segment_files(source, tmp_path / "whole", segmenter, settings)
    out = tmp_path / "shared"
    results: list[Segmented] = [
        segment_files(source, out, segmenter, settings, Shard(number, 3)) for number in (2, 3, 1)
    ]
    assert [result.lacking for result in results][-1] == 0
    assert results[0].lacking > results[1].lacking > 0
    assert hashes(out) == hashes(tmp_path / "whole")
    records = [json.loads((o / RECORD).read_text()) for o in (out, tmp_path / "whole")]
    assert records[0] == records[1]
    assert not list(out.glob("slices-*"))


@pytest.mark.parametrize("layout", ["images", "zarr"])
def test_shards_that_start_together_keep_each_others_slices(
    layout: str, tmp_path: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second runs from the moment at which the first has found an empty folder."""
    source = WRITE[layout](tmp_path / NAME[layout], volume())
    segment_files(source, tmp_path / "whole", segmenter)
    out, found = tmp_path / "out", Record.found

    def second_is_faster(record: Record, wanted: dict[str, Any]) -> dict[str, Any] | None:
        then = found(record, wanted)
        monkeypatch.setattr(Record, "found", found)
        segment_files(source, out, segmenter, shard=Shard(2, 2))
        return then

    monkeypatch.setattr(Record, "found", second_is_faster)
    first = segment_files(source, out, segmenter, shard=Shard(1, 2))
    assert first.slices == 13
    assert hashes(out) == hashes(tmp_path / "whole")


@pytest.mark.parametrize("layout", ["images", "zarr"])
def test_shards_in_processes_that_start_together(
    layout: str, tmp_path: Path, bundle: Path, segmenter: Segmenter
) -> None:
    source = WRITE[layout](tmp_path / NAME[layout], volume())
    segment_files(source, tmp_path / "whole", segmenter)
    out = tmp_path / "out"
    processes = [
        subprocess.Popen(
            [*command(source, bundle), "--shard", f"{number}/2", "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    for process in processes:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    assert hashes(out) == hashes(tmp_path / "whole")
    assert json.loads((out / RECORD).read_text())["complete"] is True


def test_a_shard_misses_the_files_of_another(tmp_path: Path, segmenter: Segmenter) -> None:
    source = write_images(tmp_path / "in", volume())
    out = tmp_path / "out"
    for number in (1, 2):
        segment_files(source, out, segmenter, shard=Shard(number, 2))
    before = hashes(out)
    (out / "masks" / "s002.png").unlink()
    assert segment_files(source, out, segmenter, shard=Shard(1, 2)).lacking == 1
    assert segment_files(source, out, segmenter, shard=Shard(2, 2)).lacking == 0
    assert hashes(out) == before


def test_shards_of_a_file_are_refused(tmp_path: Path, segmenter: Segmenter) -> None:
    source = write_tiff(tmp_path / "in.tif", volume(3))
    with pytest.raises(UserError, match="written in one piece"):
        segment_files(source, tmp_path / "out", segmenter, shard=Shard(1, 2))
    assert not (tmp_path / "out" / RECORD).exists()


@pytest.mark.parametrize("kind", ["images", "zarr"])
def test_killed_and_taken_up_again(tmp_path: Path, bundle: Path, kind: str) -> None:
    stack = np.random.default_rng(1).integers(0, 256, (60, 300, 400), dtype=np.uint8)
    source = WRITE[kind](tmp_path / NAME[kind], stack)
    given = [*command(source, bundle), "--probability", "float32"]
    out = tmp_path / "killed"
    # The process itself is killed: a signal handler or finally block would not be tested else.
    process = subprocess.Popen(
        [*given, "--out", str(out)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    lines = out / "slices-1-of-1.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if lines.exists() and len(lines.read_text().splitlines()) >= 10:
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    written = len(lines.read_text().splitlines())
    assert 10 <= written < 60
    for folder in (out, tmp_path / "whole"):
        done = subprocess.run(
            [*given, "--out", str(folder)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        if folder == out:
            assert "of them earlier" in done.stdout
    assert hashes(out) == hashes(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["images", "zarr", "tiff"])
def test_another_run_in_the_same_folder_is_refused(
    tmp_path: Path, segmenter: Segmenter, bundle: Path, kind: str
) -> None:
    source = WRITE[kind](tmp_path / NAME[kind], volume(5))
    out = tmp_path / "out"
    segment_files(source, out, segmenter)
    before = hashes(out)
    for settings, words in (
        (Settings(invert=True), "invert was False, is True"),
        (Settings(median=3), "median was 1, is 3"),
        (Settings(overlay=True), "overlay was False, is True"),
        (Settings(probability="uint8"), "probability was None, is uint8"),
        (Settings(ones=True), "values was"),
    ):
        with pytest.raises(UserError, match=rf"holds another run \({words}"):
            segment_files(source, out, segmenter, settings)
    with (
        Segmenter.open(bundle, ENGINE, threads=1, threshold=0.9) as other,
        pytest.raises(UserError, match=r"threshold was 0\.5, is 0\.9"),
    ):
        segment_files(source, out, other)
    another = WRITE[kind](tmp_path / f"other-{NAME[kind]}", volume(5))
    with pytest.raises(UserError, match="input was"):
        segment_files(another, out, segmenter)
    assert hashes(out) == before


def test_an_input_that_changed(tmp_path: Path, segmenter: Segmenter) -> None:
    source = write_tiff(tmp_path / "in.tif", volume(3))
    segment_files(source, tmp_path / "out", segmenter)
    os.utime(source, ns=(0, 0))
    with pytest.raises(UserError, match="stamp was"):
        segment_files(source, tmp_path / "out", segmenter)
    # Of a folder only the images that changed are segmented anew.
    folder = write_images(tmp_path / "in", volume(6))
    segment_files(folder, tmp_path / "images", segmenter)
    Image.fromarray(255 - volume(6)[3]).save(folder / "s003.png")
    result = segment_files(folder, tmp_path / "images", segmenter)
    assert result.found == 4
    mask = np.asarray(Image.open(tmp_path / "images" / "masks" / "s003.png"))
    np.testing.assert_array_equal(mask, segmenter.segment(255 - volume(6)[3:4])[0] * np.uint8(255))


def test_a_damaged_record(tmp_path: Path, segmenter: Segmenter) -> None:
    source = write_tiff(tmp_path / "in.tif", volume(3))
    segment_files(source, tmp_path / "out", segmenter)
    (tmp_path / "out" / RECORD).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        segment_files(source, tmp_path / "out", segmenter)


def test_torn_lines_count_as_none(
    tmp_path: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_images(tmp_path / "in", volume(6))
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(UserError, match="power cut"):
            segment_files(source, out, segmenter)
    lines = out / "slices-1-of-1.jsonl"
    lines.write_bytes(b'{"index": 5}\n7\n' + lines.read_bytes()[:-9])
    assert segment_files(source, out, segmenter).found == 2
    assert len((out / SLICES).read_text().splitlines()) == 6
