from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from emfast.cli.segment import segment
from engines.bundle import MANIFEST
from engines.errors import UserError
from engines.onnxruntime import import_onnxruntime
from tests.bundles import write_segmenter_bundle

app = typer.Typer()
app.command()(segment)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_segmenter_bundle(tmp_path / "bundle")


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    folder = tmp_path / "slices"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        image = rng.integers(0, 256, (19, 27), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"s{i}.png")
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def error(*arguments: object) -> str:
    """The one line that the user sees."""
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, UserError), result.exception
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_folder(bundle: Path, slices: Path, tmp_path: Path) -> None:
    result = invoke(slices, "--out", tmp_path / "out", "--model", bundle, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"2 slices segmented, masks in {tmp_path / 'out' / 'masks'}\n")
    assert "mitochondria: " in result.stdout
    assert "overlays" not in result.stdout
    assert sorted(p.name for p in (tmp_path / "out" / "masks").iterdir()) == ["s0.png", "s1.png"]


def test_what_runs_is_said(bundle: Path, slices: Path, tmp_path: Path) -> None:
    result = invoke(slices, "--out", tmp_path / "out", "--model", bundle, "--threads", 1)
    record = json.loads((tmp_path / "out" / "segment.json").read_text())
    lines = result.stderr.splitlines()
    (line,) = [line for line in lines if line.startswith("engine: ")]
    for value in record["engine"].values():
        assert value in line
    assert record["engine"]["device"] == "CPU, 1 threads"
    assert lines[: lines.index(line)] == record["passed_over"]
    # Each engine that auto passes over on the way to this one is told with its reason.
    assert all(" passed over: " in reason for reason in record["passed_over"])


def test_tiff_with_overlays_and_threshold(bundle: Path, tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 256, (3, 20, 30), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "v.tif", volume, photometric="minisblack")
    shares = []
    for threshold in (0.2, 0.8):
        out = tmp_path / str(threshold)
        result = invoke(
            tmp_path / "v.tif", "--out", out, "--model", bundle, "--overlay",
            "--threshold", threshold, "--engine", "onnxruntime-cpu", "--precision", "fp32",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert f"overlays in {out / 'overlays'}" in result.stdout
        assert len(list((out / "overlays").iterdir())) == 3
        masks = tifffile.imread(out / "masks" / "v.tif")
        assert masks.shape == volume.shape
        assert json.loads((out / "segment.json").read_text())["threshold"] == threshold
        shares.append((masks > 0).mean())
    assert shares[0] > shares[1] + 0.3


def test_one_tiny_image(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(np.eye(7, 5, dtype=np.uint8) * 200).save(tmp_path / "tiny.png")
    result = invoke(tmp_path / "tiny.png", "--out", tmp_path / "out", "--model", bundle)
    assert result.stdout.startswith("1 slice segmented")
    assert Image.open(tmp_path / "out" / "masks" / "tiny.png").size == (5, 7)


def test_wrong_sources(bundle: Path, tmp_path: Path) -> None:
    options = ("--out", tmp_path / "out", "--model", bundle)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    assert "nowhere: no such file or folder" in error(tmp_path / "nowhere", *options)
    assert "nowhere.png: no such file or folder" in error(tmp_path / "nowhere.png", *options)
    assert "empty: holds no images" in error(tmp_path / "empty", *options)
    assert "text.png: is not an image" in error(tmp_path / "text.png", *options)
    assert not list((tmp_path / "out").glob("masks/*"))


def test_truncated_png(bundle: Path, slices: Path, tmp_path: Path) -> None:
    content = (slices / "s1.png").read_bytes()
    (slices / "s1.png").write_bytes(content[: len(content) // 2])
    message = error(slices, "--out", tmp_path / "out", "--model", bundle)
    assert "s1.png: cannot be read, truncated or damaged" in message


def test_out_is_the_source(bundle: Path, slices: Path) -> None:
    assert "is the input itself" in error(slices, "--out", slices, "--model", bundle)


def test_wrong_bundles(bundle: Path, slices: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "is not a bundle" in error(slices, "--out", out, "--model", tmp_path / "nothing")

    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps({**manifest, "kind": "denoiser"}))
    message = error(slices, "--out", out, "--model", bundle)
    assert "is a denoiser, but this needs a segmenter" in message

    (bundle / MANIFEST).write_text(json.dumps({**manifest, "model": {"classes": 1}}))
    assert "missing or malformed entry" in error(slices, "--out", out, "--model", bundle)

    (bundle / MANIFEST).write_text(json.dumps(manifest))
    graph = bytearray((bundle / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(graph)
    message = error(slices, "--out", out, "--model", bundle)
    assert "model.onnx: was altered or damaged" in message

    (bundle / "model.onnx").unlink()
    assert "model.onnx: is missing" in error(slices, "--out", out, "--model", bundle)
    assert not out.exists()


def test_a_named_engine_is_that_engine_or_an_error(
    bundle: Path, slices: Path, tmp_path: Path
) -> None:
    if "CUDAExecutionProvider" in import_onnxruntime().get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    options = ("--out", tmp_path / "out", "--model", bundle)
    message = error(slices, *options, "--engine", "onnxruntime-cuda")
    assert message.startswith("engine onnxruntime-cuda: ")
    assert "unknown engine 'gpu'; accepted: auto" in error(slices, *options, "--engine", "gpu")
    assert "has no fp16 graph" in error(slices, *options, "--precision", "fp16")
    assert "give a number in [0, 1]" in error(slices, *options, "--threshold", 7)
    assert not (tmp_path / "out").exists()


def test_help_has_an_example() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert "Example: emfast segment" in result.stdout


def test_out_is_required(slices: Path) -> None:
    result = invoke(slices)
    assert result.exit_code == 2
    assert "--out" in result.stderr


def test_decisions_are_printed_once_and_recorded(bundle: Path, tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 4000, (3, 20, 30)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "v.tif", volume, photometric="minisblack")
    result = invoke(
        tmp_path / "v.tif", "--out", tmp_path / "out", "--model", bundle,
        "--invert", "--normalize", "volume", "--range", 100, 3900,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    record = json.loads((tmp_path / "out" / "segment.json").read_text())
    assert [line for line in lines if line in record["decisions"]] == record["decisions"]
    assert record["decisions"][:2] == [
        "volume: 3 slices of 30 x 20 pixels, uint16, axes ZYX",
        "greys: standardised by the mean and deviation of the volume, clipped to 100 to 3900, "
        "then inverted",
    ]
    assert " far outside the others: clipped" in result.stdout


def test_objects_probabilities_and_going_on(bundle: Path, slices: Path, tmp_path: Path) -> None:
    command = (
        slices, "--out", tmp_path / "out", "--model", bundle, "--instances", "components3d",
        "--min-size", 2, "--fill-holes", "--probability", "uint8", "--values", "0-1",
        "--flips", 4, "--median", 3, "--tile", 512, "--overlap", 64,
    )  # fmt: skip
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert f"objects, labels in {tmp_path / 'out' / 'labels'}" in result.stdout
    assert f"probabilities in {tmp_path / 'out' / 'probability'}" in result.stdout
    again = invoke(*command)
    assert again.stdout.startswith("2 slices segmented, 2 of them earlier, masks in ")
    assert "holds another run (median was 3, is 1)" in error(*command[:-6], *command[-4:])


def test_shards(bundle: Path, slices: Path, tmp_path: Path) -> None:
    from unittest.mock import patch

    options = ("--out", tmp_path / "out", "--model", bundle, "--engine", "onnxruntime-cpu")
    with patch("emfast.segmentation.segmenter.BATCH_PIXELS", 1):
        first = invoke(slices, *options, "--shard", "1/2")
        assert "1 of 2 slices are left to other shards" in first.stdout
        second = invoke(slices, *options, "--shard", "2/2")
    assert second.stdout.startswith("2 slices segmented, masks in ")
    assert "numbered from 1 to 2" in error(slices, *options, "--shard", "3/2")


@pytest.mark.parametrize(
    ("option", "word", "message"),
    [
        ("--normalize", "stack", "accepted are slice, volume"),
        ("--values", "0-2", "accepted are 0-255, 0-1"),
        ("--probability", "float16", "accepted are float32, uint8"),
        ("--instances", "blobs", "accepted are components2d, components3d"),
        ("--median", "4", "odd number"),
        ("--flips", "3", "give 1"),
        ("--overlap", "-1", "0 or more"),
        ("--tile", "100", "give 272 or more"),
        ("--min-size", "5", "--instances"),
        ("--pixel-size", "8", "leave --pixel-size out"),
        ("--axes", "XYZ", "axes"),
    ],
)
def test_words_that_are_not_accepted(
    bundle: Path, slices: Path, tmp_path: Path, option: str, word: str, message: str
) -> None:
    out = tmp_path / "out"
    assert message in error(slices, "--out", out, "--model", bundle, option, word)
    assert not out.exists()
