"""Whole runs on other data than 8-bit slices of 5 nm, and what is written beside masks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from emfast.data.sample import read_sample
from emfast.quality.overlap import confusion
from emfast.segmentation.greys import Greys
from emfast.segmentation.instances import label_instances
from emfast.segmentation.job import segment_files, segment_volume
from emfast.segmentation.record import RECORD
from emfast.segmentation.segmenter import Segmenter
from emfast.segmentation.settings import Settings
from engines.bundle import MANIFEST, open_bundle
from engines.errors import UserError
from tests.bundles import write_segmenter_bundle

ENGINE = "onnxruntime-cpu"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_segmenter_bundle(tmp_path / "bundle")


@pytest.fixture
def segmenter(bundle: Path) -> Iterator[Segmenter]:
    with Segmenter.open(bundle, ENGINE, threads=1) as segmenter:
        yield segmenter


def with_pixel_size(bundle: Path, nanometres: float) -> Path:
    """The same bundle, trained on another pixel size."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["model"]["pixel_size"] = nanometres
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    return bundle


def blobs(slices: int = 6, height: int = 60, width: int = 80) -> npt.NDArray[np.uint8]:
    """Dark balls on bright noise."""
    rng = np.random.default_rng(0)
    stack = rng.integers(150, 200, (slices, height, width), dtype=np.uint8)
    z, y, x = np.ogrid[:slices, :height, :width]
    for cz, cy, cx, r in ((1, 15, 20, 8), (3, 40, 50, 10), (4, 12, 65, 5)):
        stack[9 * (z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 < r**2] = 40
    return stack


def masks_of(path: Path) -> npt.NDArray[Any]:
    return tifffile.imread(path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_every_type_gives_the_masks_of_its_bytes(
    tmp_path: Path, segmenter: Segmenter, dtype: str
) -> None:
    stack = blobs()
    stored = (stack.astype(np.float64) * (1 if dtype == "uint8" else 20)).astype(dtype)
    tifffile.imwrite(tmp_path / "s.tif", stored, photometric="minisblack")
    result = segment_files(tmp_path / "s.tif", tmp_path / "out", segmenter)
    np.testing.assert_array_equal(masks_of(result.masks), segmenter.segment(stack) * 255)
    assert result.notes == ()


def test_a_slice_of_one_grey_shows_nothing_and_is_told(tmp_path: Path) -> None:
    """As volumes are padded with; the shipped network marks a third of such a slice."""
    stack = np.stack([np.zeros((48, 64), np.uint8), blobs(1, 48, 64)[0]])
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
    with Segmenter.open("epfl-segmenter", "onnxruntime-cpu", threads=1) as segmenter:
        result = segment_files(tmp_path / "s.tif", tmp_path / "out", segmenter)
        assert not masks_of(result.masks)[0].any()
        assert not segmenter.probability(stack)[0].any()
        assert segmenter.probability(stack)[1].any()
    assert result.notes == ("3072 pixels in 1 slice of one grey: nothing is found there",)


def test_holes_and_hot_pixels_are_counted_and_told(tmp_path: Path, segmenter: Segmenter) -> None:
    stack = blobs().astype(np.float32)
    expected = segmenter.segment(stack)
    stack[2, :10, :10], stack[3, 0, 0], stack[4, 30, 30] = np.nan, np.inf, 1e9
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
    settings = Settings(probability="float32")
    result = segment_files(tmp_path / "s.tif", tmp_path / "out", segmenter, settings)
    assert result.notes == (
        "101 pixels in 2 slices NaN or infinite: left out of the statistics, mask 0 there",
        "1 pixels in 1 slice far outside the others: clipped",
    )
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert (record["invalid"], record["clipped"]) == (101, 1)
    masks = masks_of(result.masks)
    assert not masks[2, :10, :10].any()
    far = np.ones(stack.shape, dtype=bool)
    far[2, :12, :12] = far[3, :2, :2] = far[4, 29:32, 29:32] = False
    assert np.mean((masks > 0)[far] != (expected > 0)[far]) < 1e-3
    assert result.probability is not None
    probability = tifffile.imread(result.probability)
    assert probability.dtype == np.float32
    assert not probability[2, :10, :10].any()


def test_threshold_zero_leaves_what_is_no_number_out(bundle: Path) -> None:
    image = blobs(1).astype(np.float32)
    image[0, :3] = np.nan
    with Segmenter.open(bundle, ENGINE, threads=1, threshold=0.0) as segmenter:
        labels = segmenter.segment(image)
    assert not labels[0, :3].any()
    assert labels[0, 3:].all()


def test_volume_statistics(tmp_path: Path, bundle: Path) -> None:
    stack = blobs()
    stack[3:] = stack[3:] // 2
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
    with Segmenter.open(bundle, ENGINE, threads=1, scope="volume") as segmenter:
        result = segment_files(tmp_path / "s.tif", tmp_path / "out", segmenter)
        np.testing.assert_array_equal(masks_of(result.masks), segmenter.segment(stack) * 255)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["normalize"] == "volume"
    assert record["statistics"]["mean"] == pytest.approx(stack.mean())
    assert record["statistics"]["deviation"] == pytest.approx(stack.std())
    # What is dark in the volume is dark, though it is usual in its slice.
    assert (masks_of(result.masks)[3:] > 0).mean() > 0.9


@pytest.mark.parametrize("given", [None, 10.0])
def test_pixel_size_from_the_file_or_as_given(
    tmp_path: Path, bundle: Path, given: float | None
) -> None:
    stack = np.where(blobs(2) < 100, np.uint8(40), np.uint8(180))
    metadata = {"axes": "ZYX", "PhysicalSizeX": 10.0, "PhysicalSizeXUnit": "nm"}
    metadata |= {"PhysicalSizeY": 10.0, "PhysicalSizeYUnit": "nm"}
    source = tmp_path / ("s.ome.tif" if given is None else "s.tif")
    tifffile.imwrite(
        source, stack, photometric="minisblack", metadata=metadata if given is None else None
    )
    told: list[str] = []
    with Segmenter.open(with_pixel_size(bundle, 5.0), ENGINE, threads=1) as segmenter:
        result = segment_files(
            source,
            tmp_path / "out",
            segmenter,
            Settings(pixel_size=given),
            tell=told.append,
        )
        expected = segmenter.segment(stack, pixel_size=(10.0, 10.0))
        # The same by hand: the slice at twice the size through the same network.
        large = segmenter.probability(np.kron(stack, np.ones((1, 2, 2), np.uint8)))
        by_hand = large.reshape(2, 60, 2, 80, 2).mean(axis=(2, 4)) >= 0.5
    masks = masks_of(result.masks)
    assert masks.shape == stack.shape
    np.testing.assert_array_equal(masks, expected * 255)
    assert confusion(expected, by_hand.astype(np.uint8)).dice > 0.95
    assert any("10 nm" in line and "resampled to the model's 5 nm" in line for line in told)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["resampled"] == [2.0, 2.0]
    assert record["decisions"] == told


def test_values_and_probabilities(tmp_path: Path, segmenter: Segmenter) -> None:
    stack = blobs()
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
    settings = Settings(ones=True, probability="uint8")
    result = segment_files(tmp_path / "s.tif", tmp_path / "out", segmenter, settings)
    assert np.unique(masks_of(result.masks)).tolist() == [0, 1]
    assert result.probability is not None
    stored = tifffile.imread(result.probability)
    assert stored.dtype == np.uint8
    expected = segmenter.probability(stack)[:, 0] * 255
    assert np.abs(stored - expected).max() <= 0.501


@pytest.mark.parametrize("method", ["components2d", "components3d", "watershed2d", "watershed3d"])
@pytest.mark.parametrize("kind", ["tiff", "images"])
def test_instances(tmp_path: Path, segmenter: Segmenter, method: Any, kind: str) -> None:
    stack = blobs()
    source = tmp_path / ("s.tif" if kind == "tiff" else "in")
    if kind == "tiff":
        tifffile.imwrite(source, stack, photometric="minisblack")
    else:
        source.mkdir()
        for i, image in enumerate(stack):
            Image.fromarray(image).save(source / f"s{i}.png")
    settings = Settings(instances=method, min_size=20, fill_holes=True)
    result = segment_files(source, tmp_path / "out", segmenter, settings)
    assert result.labels is not None
    files = [result.labels] if kind == "tiff" else sorted(result.labels.iterdir())
    labels = np.concatenate([np.atleast_3d(tifffile.imread(f)).reshape(-1, 60, 80) for f in files])
    expected = label_instances(
        segmenter.segment(stack), method=method, min_voxels=20, fill_holes=True
    )
    np.testing.assert_array_equal(labels, expected)
    assert result.objects == expected.max() > 0
    assert json.loads((tmp_path / "out" / RECORD).read_text())["objects"] == result.objects


def test_what_does_not_go_together(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(UserError, match="--instances"):
        Settings(min_size=3)
    two = write_segmenter_bundle(tmp_path / "two", classes=2)
    tifffile.imwrite(tmp_path / "s.tif", blobs(2), photometric="minisblack")
    with (
        Segmenter.open(two, ENGINE, threads=1) as segmenter,
        pytest.raises(UserError, match="one class"),
    ):
        segment_files(
            tmp_path / "s.tif", tmp_path / "out", segmenter, Settings(instances="components2d")
        )
    for name, shape in (("a.png", (9, 8)), ("b.png", (8, 9))):
        (tmp_path / "mixed").mkdir(exist_ok=True)
        Image.fromarray(np.zeros(shape, dtype=np.uint8)).save(tmp_path / "mixed" / name)
    with Segmenter.open(bundle, ENGINE, threads=1) as segmenter:
        for settings in (Settings(median=3), Settings(instances="components3d")):
            with pytest.raises(UserError, match="differ in size"):
                segment_files(tmp_path / "mixed", tmp_path / "out", segmenter, settings)


@pytest.fixture(scope="module")
def shipped() -> Iterator[Segmenter]:
    with Segmenter.open(engine=ENGINE, threads=1) as segmenter:
        yield segmenter


@pytest.fixture(scope="module")
def crop() -> npt.NDArray[np.uint8]:
    """A part of the sample slice that several tiles of 288 pixels cover."""
    return read_sample().images[:, 100:500, 200:760]


@pytest.fixture(scope="module")
def whole(shipped: Segmenter, crop: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return shipped.probability(crop)


def tiled(shipped: Segmenter, crop: npt.NDArray[np.uint8], overlap: int | None) -> Any:
    segmenter = Segmenter(shipped.bundle, shipped._engine, tile=288, overlap=overlap)
    return segmenter.probability(crop)


def test_tiles_of_the_shipped_network_equal_the_whole_slice(
    shipped: Segmenter, crop: npt.NDArray[np.uint8], whole: npt.NDArray[np.float32]
) -> None:
    """The bound holds at every pixel, cut edges and the slice's own border included."""
    found = tiled(shipped, crop, None)
    assert np.abs(found - whole).max() < 1e-3
    assert np.count_nonzero((found >= 0.5) != (whole >= 0.5)) == 0


def test_narrow_overlaps_show_no_seam(
    shipped: Segmenter, crop: npt.NDArray[np.uint8], whole: npt.NDArray[np.float32]
) -> None:
    """Along the cuts the blended probability bends no more than elsewhere; a plain cut does."""
    from emfast.segmentation.tiling import spans

    cuts = [s.keep_start for s in spans(560, 288, 16, 32)][1:]
    assert cuts

    def bend(p: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """How much the second difference of each column exceeds the whole slice's own."""
        second = np.abs(np.diff(p[0, 0].astype(float), n=2, axis=1)).mean(axis=0)
        own = np.abs(np.diff(whole[0, 0].astype(float), n=2, axis=1)).mean(axis=0)
        return second - own

    blended = bend(tiled(shipped, crop, 32))
    near = np.zeros(blended.shape, dtype=bool)
    for cut in cuts:
        near[cut - 3 : cut + 2] = True
    assert blended[near].max() <= np.abs(blended[~near]).max() + 1e-4
    assert np.abs(tiled(shipped, crop, 32) - whole).mean() < 0.01


def test_inverted_rescaled_16_bit_sample(tmp_path: Path) -> None:
    """A copy of the sample as from another microscope: segmented when told so, else missed."""
    bundle = tmp_path / "shipped"
    shutil.copytree(open_bundle("epfl-segmenter").path, bundle)
    sample = read_sample()
    box = (slice(100, 420), slice(200, 680))
    image, truth = sample.images[0][box], sample.labels()[0][box]
    size = (300, 200)
    small = np.asarray(Image.fromarray(image).convert("F").resize(size, Image.Resampling.LANCZOS))
    stored = np.rint((255 - np.clip(small, 0, 255)) * 200 + 1000).astype(np.uint16)[None]
    label = np.asarray(Image.fromarray(truth).resize(size, Image.Resampling.NEAREST))[None]
    with Segmenter.open(with_pixel_size(bundle, 5.0), ENGINE, threads=1) as segmenter:
        right = segmenter.segment(stored, Greys(invert=True), (8.0, 8.0))
        wrong = segmenter.segment(stored)
    assert confusion(right, label).dice > 0.7
    assert confusion(wrong, label).dice < 0.1


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from emfast.segmentation.job import segment_files
from emfast.segmentation.segmenter import Segmenter
from emfast.segmentation.settings import Settings
with Segmenter.open(sys.argv[1], "onnxruntime-cpu", threads=1) as segmenter:
    segment_files(sys.argv[2], Path(sys.argv[3]), segmenter, Settings(median=3))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_volume(tmp_path: Path, bundle: Path) -> None:
    """Peak memory in MiB, of a process of its own, for 40 and for 320 slices of 512 x 512."""
    peaks = []
    for count in (40, 320):
        source = tmp_path / f"{count}.tif"
        plane = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
        with tifffile.TiffWriter(source) as tiff:
            for _ in range(count):
                tiff.write(plane, photometric="minisblack", metadata=None)
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(bundle), str(source), str(tmp_path / f"o{count}")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    # The larger one has 70 MiB more of greys alone, and 280 MiB of probabilities.
    assert peaks[1] < peaks[0] + 25


def write_volume(kind: str, folder: Path, stack: npt.NDArray[Any]) -> Path:
    """A volume of a format with voxels of 30 x 10 x 10 nm, written by the format's own library."""
    path = folder / f"cells.{kind}"
    if kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            data = file.create_dataset("volumes/raw", data=stack, chunks=(4, 16, 16))
            data.attrs["resolution"] = (30.0, 10.0, 10.0)
    elif kind == "mrc":
        mrcfile = pytest.importorskip("mrcfile")
        with mrcfile.new(path) as mrc:
            mrc.set_data(stack)
            mrc.set_volume()
            mrc.voxel_size = (100.0, 100.0, 300.0)
    else:
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(str(path), mode="w")
        group.create_array("0", data=stack, chunks=(4, 16, 16), dimension_names=("z", "y", "x"))
        axes = [{"name": n, "type": "space", "unit": "nanometer"} for n in "zyx"]
        scale = [{"type": "scale", "scale": [30.0, 10.0, 10.0]}]
        datasets = [{"path": "0", "coordinateTransformations": scale}]
        multiscales = [{"axes": axes, "datasets": datasets}]
        group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    return path


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("kind", ["h5", "mrc", "zarr"])
def test_every_format_keeps_its_layout(tmp_path: Path, bundle: Path, kind: str, dtype: str) -> None:
    from emfast.volumes import VoxelSize, open_volume

    stack = blobs(10).astype(dtype) * 20
    source = write_volume(kind, tmp_path, stack)
    settings = Settings(probability="float32", instances="components3d", median=3)
    with Segmenter.open(with_pixel_size(bundle, 5.0), ENGINE, threads=1) as segmenter:
        with open_volume(source, axes="ZYX") as reader:
            result = segment_volume(reader, tmp_path / "out", segmenter, settings)
        probability = segmenter.probability(stack, pixel_size=(10.0, 10.0))[:, 0]
    middle = [np.median(probability[max(i - 1, 0) : i + 2], axis=0) for i in range(10)]
    expected = {
        result.masks: (np.stack(middle) >= 0.5) * np.uint8(255),
        result.probability: np.stack(middle),
        result.labels: label_instances(np.stack(middle) >= 0.5, method="components3d"),
    }
    assert result.objects is not None and result.objects > 1
    for path, values in expected.items():
        assert path is not None
        assert path.name == source.name
        axes = "ZYX" if kind == "h5" else None
        with open_volume(path, axes=axes) as written:
            assert written.info.voxel == VoxelSize(30.0, 10.0, 10.0)
            np.testing.assert_allclose(written.read(0, 10), values, atol=1e-6)
