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
from emfast.segmentation.preprocessing import SegmenterSpec
from emfast.segmentation.segmenter import Segmenter
from emfast.server.batching import Reading
from emfast.server.decode import Decoded
from emfast.server.encode import Output, Wanted
from emfast.server.errors import ApiError
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
        "blank": 0,
        "pixel_size": [5, 5],
        "pixel_size_from": "model",
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


def tiff(image: npt.NDArray[Any], nanometres: float, flavour: str) -> bytes:
    """A TIFF that says its pixel size."""
    file = io.BytesIO()
    if flavour == "plain":
        per_cm = 1e7 / nanometres
        tifffile.imwrite(file, image, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")
    elif flavour == "imagej":
        per_micron = 1e3 / nanometres
        tifffile.imwrite(
            file, image, imagej=True, resolution=(per_micron, per_micron), metadata={"unit": "um"}
        )
    else:
        sizes = {"PhysicalSizeX": nanometres, "PhysicalSizeXUnit": "nm"}
        sizes |= {"PhysicalSizeY": nanometres, "PhysicalSizeYUnit": "nm"}
        tifffile.imwrite(file, image, ome=True, metadata=sizes)
    return file.getvalue()


@pytest.mark.parametrize("flavour", ["plain", "imagej", "ome"])
def test_the_pixel_size_that_a_file_says(scaled: Path, scaling: Server, flavour: str) -> None:
    image = wide("uint16")
    with Segmenter.open(scaled, "onnxruntime-cpu", threads=1) as segmenter:
        at = {nm: segmenter.probability(image[None], pixel_size=(nm, nm))[0] for nm in (6.0, 8.0)}
    answer = scaling.post(tiff(image, 8, flavour), output="probability")
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(load_npy(answer.content), at[8.0], atol=1e-4)
    told = json.loads(answer.headers["emfast-read-as"])
    assert told["pixel_size"] == pytest.approx([8, 8])
    assert (told["pixel_size_from"], told["resampled"]) == ("file", True)
    # The request knows better.
    answer = scaling.post(tiff(image, 8, flavour), output="probability", pixel_size=6)
    assert load_npy(answer.content).tobytes() == at[6.0].tobytes()
    told = json.loads(answer.headers["emfast-read-as"])
    assert (told["pixel_size"], told["pixel_size_from"]) == ([6, 6], "request")


def test_files_that_do_not_say_their_pixel_size(scaling: Server) -> None:
    told = json.loads(scaling.post(encoded(sample())).headers["emfast-read-as"])
    assert (told["pixel_size"], told["pixel_size_from"]) == ([5, 5], "model")


def test_a_model_that_does_not_know_its_own_pixel_size() -> None:
    spec = SegmenterSpec(1, ("mitochondria",), "standardize", 0.5)
    silent = Decoded(sample()[None], stack=False)
    said = Decoded(sample()[None], stack=False, pixel_size=(8.0, 8.0))
    wanted = Wanted(Output.PNG, spec)
    told = json.loads(wanted.completed(silent).read_as(silent))
    assert (told["pixel_size"], told["pixel_size_from"]) == (None, None)
    told = json.loads(wanted.completed(said).read_as(said))
    assert (told["pixel_size"], told["pixel_size_from"]) == ([8, 8], "file")
    assert not told["resampled"]
    given = Wanted(Output.PNG, spec, reading=Reading(pixel_size=(8.0, 8.0)))
    with pytest.raises(ApiError, match="does not say which one it was trained on"):
        given.completed(said).check(said, 10**6)


def test_a_pixel_size_in_a_file_that_cannot_be(scaling: Server) -> None:
    body = tiff(sample(), 500, "plain")
    answer = scaling.post(body)
    assert answer.status_code == 422
    told = answer.json()
    assert told["got"] == "a file of pixels of 500 x 500 nm"
    assert told["accepted"] == (
        "nm, at most 8 times from the model's 5 nm; where the file is wrong, say the "
        "pixel size with pixel_size"
    )
    assert scaling.post(body, pixel_size=5).status_code == 200
