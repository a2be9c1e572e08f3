from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from emfast.segmentation import tiling
from emfast.segmentation.preprocessing import label_map
from emfast.segmentation.segmenter import Segmenter
from engines.bundle import MANIFEST, open_bundle
from engines.errors import UserError
from tests.bundles import write_segmenter_bundle

GAIN = 4.0


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_segmenter_bundle(tmp_path / "bundle", gain=GAIN)


def noise(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def expected(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """What the test bundle's formula gives inside the slice."""
    x = (image - image.mean()) / image.std()
    inner = sum(x[i : i - 2 or None, j : j - 2 or None] for i in range(3) for j in range(3))
    result: npt.NDArray[np.float64] = 1 / (1 + np.exp(GAIN * inner / 9))
    return result


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (7, 5), (16, 3), (100, 20)])
def test_slices_of_any_size(bundle: Path, size: tuple[int, int]) -> None:
    images = noise(2, *size)
    with Segmenter.open(bundle, threads=1) as segmenter:
        probability = segmenter.probability(images)
        labels = segmenter.segment(images)
    assert probability.shape == (2, 1, *size)
    assert probability.dtype == np.float32
    for image, plane in zip(images, probability, strict=True):
        np.testing.assert_allclose(plane[0, 1:-1, 1:-1], expected(image), atol=1e-5)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, probability[:, 0] >= 0.5)


def test_one_pixel_and_no_slices(bundle: Path) -> None:
    with Segmenter.open(bundle, threads=1) as segmenter:
        assert segmenter.probability(noise(1, 1, 1)).shape == (1, 1, 1, 1)
        assert segmenter.segment(noise(0, 8, 8)).shape == (0, 8, 8)


def test_tiles_equal_the_whole_slice(bundle: Path) -> None:
    images = noise(1, 700, 601)
    with Segmenter.open(bundle, threads=1) as whole:
        reference = whole.probability(images)
    with Segmenter.open(bundle, threads=1, tile=tiling.least_tile(16)) as tiled:
        np.testing.assert_allclose(tiled.probability(images), reference, rtol=0, atol=1e-6)


def test_halo_is_wider_than_what_a_unet_sees(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from emfast.models.unet import UNet
    from engines.torch import TorchEngine

    torch.manual_seed(0)
    unet = UNet(widths=(2, 2, 2, 2, 2))
    with torch.no_grad():  # averages along the coarsest path let the farthest pixels count
        for name, parameter in unet.named_parameters():
            if name.startswith("up.") and parameter.ndim == 4:
                parameter.fill_(1 / 2)
            elif parameter.ndim == 4:
                parameter.fill_(1 / parameter[0].numel())
            if name.startswith("decoder.") and parameter.ndim == 4 and parameter.shape[1] == 4:
                parameter[:, :2] = 0
                parameter[:, 2:] *= 2
    network = torch.nn.Sequential(unet, torch.nn.Sigmoid())
    images = noise(1, 290, 560)

    def run(tile: int) -> npt.NDArray[np.float32]:
        engine = TorchEngine(network, ["x"], ["probability"])
        return Segmenter(open_bundle(bundle), engine, tile=tile).probability(images)

    reference = run(1024)
    tile = tiling.least_tile(16)
    np.testing.assert_allclose(run(tile), reference, rtol=0, atol=1e-6)
    monkeypatch.setattr(tiling, "HALO", 16)
    assert np.abs(run(tile) - reference).max() > 1e-4


def test_small_slices_run_as_batches_with_the_same_result(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = noise(5, 20, 30)
    with Segmenter.open(bundle, threads=1) as segmenter:
        together = segmenter.probability(images)
        monkeypatch.setattr("emfast.segmentation.segmenter.BATCH_PIXELS", 2 * 20 * 30)
        np.testing.assert_allclose(segmenter.probability(images), together, rtol=0, atol=1e-6)
        alone = np.concatenate([segmenter.probability(image[None]) for image in images])
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-6)


def test_classes_and_threshold(tmp_path: Path) -> None:
    bundle = write_segmenter_bundle(tmp_path / "two", classes=2)
    image = np.full((1, 32, 48), 128, dtype=np.uint8)
    image[:, :, :16], image[:, :, 32:] = 0, 255
    with Segmenter.open(bundle, threads=1, threshold=0.9) as segmenter:
        labels = segmenter.segment(image)[0, 8]
    assert labels[[4, 24, 44]].tolist() == [1, 0, 2]


def test_the_threshold_itself_belongs_to_the_class() -> None:
    probability = np.array([[[[0.4, 0.5, 0.6, 0.2]], [[0.4, 0.1, 0.7, 0.5]]]], dtype=np.float32)
    assert label_map(probability, 0.5).tolist() == [[[0, 1, 2, 2]]]
    assert label_map(probability, 0.0).tolist() == [[[1, 1, 2, 2]]]


def test_overflow_is_told(tmp_path: Path) -> None:
    bundle = write_segmenter_bundle(tmp_path / "nan", gain=float("nan"))
    with (
        Segmenter.open(bundle, "onnxruntime-cpu", threads=1) as segmenter,
        pytest.raises(UserError, match="not numbers"),
    ):
        segmenter.segment(noise(1, 16, 16))


@pytest.mark.parametrize(
    "images",
    [noise(16, 16), noise(1, 0, 16), noise(1, 16, 16).astype(np.bool_), noise(1, 1, 16, 16)],
)
def test_other_arrays_are_refused(bundle: Path, images: npt.NDArray[np.uint8]) -> None:
    with (
        Segmenter.open(bundle, threads=1) as segmenter,
        pytest.raises(UserError, match=r"expected integers or floats \(slices, height, width\)"),
    ):
        segmenter.probability(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"tile": 256}, "give 272 or more"),
        ({"precision": "fp16"}, "has no fp16"),
        ({"engine": "abacus"}, "accepted: auto"),
        ({"threads": 0}, "at least 1"),
    ],
)
def test_options_that_cannot_be_had(bundle: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Segmenter.open(bundle, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model", {"classes": 2, "labels": ["a", "b"]}, "probability"),
        ("model", {"normalization": "log"}, "accepted: standardize, unit"),
    ],
)
def test_manifests_that_contradict_themselves(
    bundle: Path, section: str, change: dict[str, object], message: str
) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest[section].update(change)
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        Segmenter.open(bundle)
