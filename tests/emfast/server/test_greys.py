"""Greys of any type, inverted contrast and other pixel sizes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from emfast.segmentation.greys import Greys
from emfast.segmentation.segmenter import Segmenter
from engines.bundle import MANIFEST
from tests.bundles import write_segmenter_bundle
from tests.emfast.server.serving import Server, encoded, load_image, load_npy, npy, sample, serving


def wide(dtype: str) -> npt.NDArray[Any]:
    """The sample in another type, with a hot pixel and, in floats, pixels that are no numbers."""
    image = (sample().astype(np.float64) * 90 - 3000).astype(dtype)
    if np.dtype(dtype).kind == "u":
        image = (sample().astype(dtype) * 90).astype(dtype)
    image[3, 4] = 30000
    if image.dtype.kind == "f":
        image[5, 6:9] = np.nan, np.inf, -np.inf
    return image


@pytest.mark.parametrize("dtype", ["uint16", "int16", ">u2", "int32", "float32", "float64"])
def test_every_type_gives_the_segmenters_bytes(
    server: Server, segmenter: Segmenter, dtype: str
) -> None:
    image = wide(dtype)
    own = image.astype(image.dtype.newbyteorder("="))[None]
    answer = server.post(npy(image), output="probability")
    assert answer.status_code == 200, answer.text
    assert load_npy(answer.content).tobytes() == segmenter.probability(own)[0].tobytes()
    numbers = 3 if image.dtype.kind == "f" else 0
    assert json.loads(answer.headers["emfast-read-as"]) == {
        "dtype": own.dtype.name,
        "inverted": False,
        "clipped": 1,
        "invalid": numbers,
        "resampled": False,
    }
    mask = segmenter.segment(own)[0] * 255
    assert 0.02 < (mask > 0).mean() < 0.9
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, image, compression="zlib")
    np.testing.assert_array_equal(load_image(server.post(tiff.getvalue()).content), mask)


def test_a_png_of_16_bits(server: Server, segmenter: Segmenter) -> None:
    image = wide("uint16")
    mask = load_image(server.post(encoded(image)).content)
    np.testing.assert_array_equal(mask, segmenter.segment(image[None])[0] * 255)
    for output in ("overlay", "layers"):  # drawn in 8 bits
        drawn = load_image(server.post(encoded(image), output=output).content)
        assert (drawn.shape, drawn.dtype) == ((96, 128, 3), np.uint8)
        assert drawn[..., 0].std() > 10


def test_what_is_no_number_is_no_object(server: Server) -> None:
    image = wide("float32")
    mask = load_npy(server.post(npy(image), output="npy", threshold=0).content)
    np.testing.assert_array_equal(mask == 0, ~np.isfinite(image))


def test_inverted_contrast(server: Server, segmenter: Segmenter) -> None:
    image = 255 - sample()
    answer = server.post(encoded(image), output="probability", invert="true")
    alone = segmenter.probability(image[None], Greys(invert=True))[0]
    assert load_npy(answer.content).tobytes() == alone.tobytes()
    assert json.loads(answer.headers["emfast-read-as"])["inverted"]
    upright = segmenter.segment(sample()[None])[0] * 255
    mask = load_image(server.post(encoded(image), invert="true").content)
    assert (mask != upright).mean() < 0.001


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was trained on pixels of 5 nm."""
    bundle = write_segmenter_bundle(tmp_path_factory.mktemp("scaled") / "bundle")
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["model"]["pixel_size"] = 5.0
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    return bundle


@pytest.fixture(scope="module")
def scaling(scaled: Path) -> Iterator[Server]:
    with serving(scaled.parent, "--model", str(scaled), "--max-pixels", "40000") as running:
        yield running


def test_pixels_of_another_size(scaled: Path, scaling: Server) -> None:
    image = wide("uint16")
    with Segmenter.open(scaled, "onnxruntime-cpu", threads=1) as segmenter:
        alone = segmenter.probability(image[None], pixel_size=(8.0, 8.0))[0]
    answer = scaling.post(npy(image), output="probability", pixel_size=8)
    assert answer.status_code == 200, answer.text
    assert load_npy(answer.content).tobytes() == alone.tobytes()
    assert json.loads(answer.headers["emfast-read-as"])["resampled"]
    assert scaling.get("/v1/model").json()["pixel_size"] == 5.0


def test_resampled_pixels_have_their_limit(scaling: Server) -> None:
    answer = scaling.post(npy(sample()), pixel_size=10)
    assert answer.status_code == 413
    assert answer.json()["got"] == "49152 pixels of the model's 5 nm"
    answer = scaling.post(npy(sample()), pixel_size=50)
    assert answer.status_code == 422
    assert answer.json()["accepted"] == "nm, at most 8 times from the model's 5 nm"
