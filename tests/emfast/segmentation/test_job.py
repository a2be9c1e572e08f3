from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from emfast.data.stack import read_stack
from emfast.segmentation.job import segment_files
from emfast.segmentation.record import RECORD, SLICES
from emfast.segmentation.segmenter import Segmenter
from emfast.segmentation.settings import Settings
from engines.errors import UserError
from tests.bundles import write_segmenter_bundle


@pytest.fixture
def segmenter(tmp_path: Path) -> Iterator[Segmenter]:
    bundle = write_segmenter_bundle(tmp_path / "bundle", threshold=0.75)
    with Segmenter.open(bundle, threads=1) as segmenter:
        yield segmenter


def images(count: int = 3, height: int = 21, width: int = 35) -> npt.NDArray[np.uint8]:
    """A dark disk that wanders over bright noise."""
    rng = np.random.default_rng(0)
    result = rng.integers(150, 200, (count, height, width), dtype=np.uint8)
    y, x = np.ogrid[:height, :width]
    for i, image in enumerate(result):
        image[(y - 10) ** 2 + (x - 8 - 4 * i) ** 2 < 36] = 40
    return result


def write_folder(folder: Path, stack: npt.NDArray[np.uint8], suffix: str = ".png") -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(stack):
        Image.fromarray(image).save(folder / f"slice{i:02d}{suffix}")
    return folder


def read_folder(folder: Path) -> dict[str, npt.NDArray[np.uint8]]:
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    return {p.name: np.asarray(Image.open(p)) for p in sorted(folder.iterdir())}


def test_folder(tmp_path: Path, segmenter: Segmenter) -> None:
    stack = images()
    expected = segmenter.segment(stack) * np.uint8(255)
    result = segment_files(write_folder(tmp_path / "in", stack), tmp_path / "out", segmenter)
    written = read_folder(tmp_path / "out" / "masks")
    assert list(written) == ["slice00.png", "slice01.png", "slice02.png"]
    np.testing.assert_array_equal(list(written.values()), expected)
    assert 0.05 < expected.mean() / 255 < 0.3
    assert result.slices == 3
    assert result.masks == tmp_path / "out" / "masks"
    assert result.coverage == {"mitochondria": pytest.approx(expected.mean() / 255)}
    assert not (tmp_path / "out" / "overlays").exists()


def test_record(tmp_path: Path, segmenter: Segmenter) -> None:
    source = write_folder(tmp_path / "in", images())
    result = segment_files(source, tmp_path / "out", segmenter)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    expected = {
        "input": str(source),
        "slices": 3,
        "bundle": {"name": "test segmenter", "sha256": segmenter.bundle.sha256},
        "engine": segmenter.info.to_dict(),
        "passed_over": list(segmenter.passed_over),
        "threshold": 0.75,
        "values": {"mitochondria": 255},
        "coverage": result.coverage,
        "complete": True,
        "size": [21, 35],
        "dtype": "uint8",
        "normalize": "slice",
        "invert": False,
        "pixel_size": None,
        "resampled": None,
        "tile": 2048,
        "flips": 1,
        "median": 1,
        "invalid": 0,
    }
    assert {key: record[key] for key in expected} == expected
    lines = (tmp_path / "out" / SLICES).read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["slice00", "slice01", "slice02"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["masks", RECORD, SLICES]
    assert record["engine"]["device"].startswith("CPU")


def test_overlays_outline_the_mask(tmp_path: Path, segmenter: Segmenter) -> None:
    stack = images(1)
    segment_files(
        write_folder(tmp_path / "in", stack), tmp_path / "out", segmenter, Settings(overlay=True)
    )
    picture = read_folder(tmp_path / "out" / "overlays")["slice00.png"]
    mask = read_folder(tmp_path / "out" / "masks")["slice00.png"]
    coloured = (picture != stack[0][..., None]).any(axis=2)
    assert picture.shape == (*stack[0].shape, 3)
    assert coloured.any()
    assert (mask[coloured] == 255).all()
    assert coloured.sum() < (mask > 0).sum()


def test_tiff_stack(tmp_path: Path, segmenter: Segmenter) -> None:
    stack = images()
    tifffile.imwrite(tmp_path / "volume.tiff", stack, photometric="minisblack")
    out = tmp_path / "out"
    result = segment_files(tmp_path / "volume.tiff", out, segmenter, Settings(overlay=True))
    assert result.masks == out / "masks" / "volume.tiff"
    assert [p.name for p in (out / "masks").iterdir()] == ["volume.tiff"]
    with tifffile.TiffFile(result.masks) as tiff:
        assert len(tiff.pages) == 3
        assert all(p.aspage().compression == tifffile.COMPRESSION.ADOBE_DEFLATE for p in tiff.pages)
    np.testing.assert_array_equal(
        tifffile.imread(result.masks), segmenter.segment(stack) * np.uint8(255)
    )
    assert list(read_folder(out / "overlays")) == [f"volume{i:04d}.png" for i in range(3)]


@pytest.mark.parametrize(
    ("name", "mask"), [("a.b.png", "a.b.png"), ("s.jpg", "s.png"), ("s.tif", "s.tif")]
)
def test_single_image(tmp_path: Path, segmenter: Segmenter, name: str, mask: str) -> None:
    (image,) = images(1, 7, 5)
    Image.fromarray(image).save(tmp_path / name)
    result = segment_files(tmp_path / name, tmp_path / "deep" / "out", segmenter)
    assert result.masks == tmp_path / "deep" / "out" / "masks" / mask
    assert np.asarray(Image.open(result.masks)).shape == (7, 5)


def test_several_classes_keep_their_labels(tmp_path: Path) -> None:
    bundle = write_segmenter_bundle(tmp_path / "two", classes=2)
    with Segmenter.open(bundle, threads=1) as segmenter:
        source = write_folder(tmp_path / "in", images(1))
        result = segment_files(source, tmp_path / "out", segmenter)
    mask = read_folder(tmp_path / "out" / "masks")["slice00.png"]
    assert sorted(np.unique(mask)) == [1, 2]
    assert sum(result.coverage.values()) == pytest.approx(1)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["values"] == {"mitochondria": 1, "class 2": 2}


def test_data_set_folders_give_their_images(tmp_path: Path, segmenter: Segmenter) -> None:
    write_folder(tmp_path / "data" / "training" / "images", images())
    write_folder(tmp_path / "data" / "training" / "masks", images() // 128 * 255)
    segment_files(tmp_path / "data", tmp_path / "out", segmenter)
    assert len(read_folder(tmp_path / "out" / "masks")) == 3


def test_images_of_different_sizes(tmp_path: Path, segmenter: Segmenter) -> None:
    folder = write_folder(tmp_path / "in", images(1))
    Image.fromarray(images(1, 64, 50)[0]).save(folder / "other.png")
    segment_files(folder, tmp_path / "out", segmenter)
    sizes = [mask.shape for mask in read_folder(tmp_path / "out" / "masks").values()]
    assert sizes == [(64, 50), (21, 35)]


def test_masks_beside_their_images_make_a_stack(tmp_path: Path, segmenter: Segmenter) -> None:
    write_folder(tmp_path / "data" / "images", images())
    segment_files(tmp_path / "data" / "images", tmp_path / "data", segmenter)
    assert read_stack(tmp_path / "data").labels().any()


def test_a_second_run_writes_what_is_gone(
    tmp_path: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emfast.segmentation.segmenter.BATCH_PIXELS", 1)
    source = write_folder(tmp_path / "in", images())
    segment_files(source, tmp_path / "out", segmenter)
    before = read_folder(tmp_path / "out" / "masks")
    (tmp_path / "out" / "masks" / "slice01.png").unlink()
    result = segment_files(source, tmp_path / "out", segmenter)
    assert result.found == 2
    after = read_folder(tmp_path / "out" / "masks")
    np.testing.assert_array_equal(list(after.values()), list(before.values()))


def test_labels_are_never_overwritten(tmp_path: Path, segmenter: Segmenter) -> None:
    data = tmp_path / "data"
    write_folder(data / "images", images())
    labels = write_folder(data / "masks", images() // 128 * 255)
    before = {p: p.read_bytes() for p in labels.iterdir()}
    for source, out in (
        (data, data),
        (data / "images", data),
        (data / "images" / "slice00.png", data),
        (data / "images", data / "images"),
        (labels, data),
        (labels / "slice00.png", data),
    ):
        with pytest.raises(UserError, match="give another folder"):
            segment_files(source, out, segmenter)
    assert {p: p.read_bytes() for p in labels.iterdir()} == before
    assert not (data / RECORD).exists()


def test_masks_of_a_run_are_not_overwritten_while_they_are_the_input(
    tmp_path: Path, segmenter: Segmenter
) -> None:
    segment_files(write_folder(tmp_path / "in", images()), tmp_path / "out", segmenter)
    with pytest.raises(UserError, match="is the input itself"):
        segment_files(tmp_path / "out" / "masks", tmp_path / "out", segmenter)


def test_out_that_is_a_file(tmp_path: Path, segmenter: Segmenter) -> None:
    source = write_folder(tmp_path / "in", images(1)) / "slice00.png"
    for out in (source, source / "below"):
        with pytest.raises(UserError, match=r"slice00\.png"):
            segment_files(source, out, segmenter)
    assert Image.open(source).size == (35, 21)


def test_a_damaged_slice_leaves_whole_files_and_an_incomplete_record(
    tmp_path: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emfast.segmentation.segmenter.BATCH_PIXELS", 1)
    source = write_folder(tmp_path / "in", images())
    pixels = (source / "slice01.png").read_bytes()
    (source / "slice01.png").write_bytes(pixels[: len(pixels) // 2])
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"slice01\.png: cannot be read"):
        segment_files(source, out, segmenter)
    assert list(read_folder(out / "masks")) == ["slice00.png"]
    assert json.loads((out / RECORD).read_text())["complete"] is False

    (source / "slice01.png").write_bytes(pixels)
    segment_files(source, out, segmenter)
    assert len(read_folder(out / "masks")) == 3
    assert json.loads((out / RECORD).read_text())["complete"] is True


def test_a_tiff_appears_whole_or_not_at_all(tmp_path: Path, segmenter: Segmenter) -> None:
    tifffile.imwrite(tmp_path / "s.tif", images(), photometric="minisblack", compression="deflate")
    content = bytearray((tmp_path / "s.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "s.tif") as tiff:
        start = tiff.pages[2].aspage().dataoffsets[0]
    content[start : start + 20] = bytes(20)
    (tmp_path / "s.tif").write_bytes(content)
    with pytest.raises(UserError, match=r"s\.tif: cannot be read"):
        segment_files(tmp_path / "s.tif", tmp_path / "out", segmenter)
    assert list((tmp_path / "out" / "masks").iterdir()) == []


def test_real_slice(epfl: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    """A real slice runs through, whatever the test network makes of it."""
    result = segment_files(
        epfl / "training" / "images" / "training0150.png", tmp_path / "out", segmenter
    )
    assert np.asarray(Image.open(result.masks)).shape == (768, 1024)
    assert 0 < result.coverage["mitochondria"] < 0.5
