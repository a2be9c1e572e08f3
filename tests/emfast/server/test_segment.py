from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import tifffile
from skimage.draw import polygon2mask

from emfast.pictures import overlay
from emfast.segmentation.segmenter import Segmenter
from tests.emfast.server.serving import Server, encoded, load_image, load_npy, npy, sample


def test_every_format_gives_the_segmenters_mask(server: Server, segmenter: Segmenter) -> None:
    image = sample()
    expected = segmenter.segment(image[None])[0] * 255
    assert 0.02 < (expected > 0).mean() < 0.9
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, image, compression="zlib")
    for body in (encoded(image), encoded(image, "BMP"), tiff.getvalue(), npy(image)):
        answer = server.post(body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "image/png"
        np.testing.assert_array_equal(load_image(answer.content), expected)
    assert server.post(encoded(image, "JPEG", quality=95)).status_code == 200
    form = httpx.post(f"{server.url}/v1/segment", files={"file": ("a.png", encoded(image))})
    np.testing.assert_array_equal(load_image(form.content), expected)


def test_outputs_of_an_image(server: Server, segmenter: Segmenter) -> None:
    image = sample()
    body = encoded(image)
    probability = segmenter.probability(image[None])[0]
    labels = segmenter.segment(image[None])[0]

    np.testing.assert_array_equal(load_npy(server.post(body, output="npy").content), labels * 255)
    answer = load_npy(server.post(body, output="probability").content)
    assert answer.tobytes() == probability.tobytes()
    assert answer.shape == probability.shape
    drawn = load_image(server.post(body, output="overlay").content)
    np.testing.assert_array_equal(drawn, overlay(image, labels))
    layers = load_image(server.post(body, output="layers").content)
    np.testing.assert_array_equal(layers[..., 0], image)
    for level in (1, 64, 128, 255):
        np.testing.assert_array_equal(layers[..., 1] >= level, probability[0] >= level / 256)
    mask = tifffile.imread(io.BytesIO(server.post(body, output="tiff").content))
    np.testing.assert_array_equal(mask, labels * 255)


def test_contours_enclose_the_mask(server: Server, segmenter: Segmenter) -> None:
    image = sample(192, 256)
    answer = server.post(encoded(image), output="contours")
    told = json.loads(answer.content)
    assert (told["width"], told["height"], told["threshold"]) == (256, 192, 0.5)
    (only,) = told["slices"]
    drawn = np.zeros(image.shape, dtype=bool)
    for item in only["objects"]:
        inside = polygon2mask(image.shape, np.array(item["exterior"])[:, ::-1])
        for hole in item["holes"]:
            inside &= ~polygon2mask(image.shape, np.array(hole)[:, ::-1])
        assert inside.sum() == item["pixels"]
        assert item["label"] == "mitochondria"
        drawn |= inside
    np.testing.assert_array_equal(drawn, segmenter.segment(image[None])[0] > 0)


def test_a_stack_comes_back_as_a_stack(server: Server, segmenter: Segmenter) -> None:
    stack = np.stack([sample(top=top) for top in (0, 50, 200)])
    expected = segmenter.segment(stack) * 255
    file = io.BytesIO()
    tifffile.imwrite(file, stack, photometric="minisblack")
    pages = tifffile.imread(io.BytesIO(server.post(file.getvalue(), output="tiff").content))
    np.testing.assert_array_equal(pages, expected)
    masks = load_npy(server.post(npy(stack), output="npy").content)
    np.testing.assert_array_equal(masks, expected)
    assert load_npy(server.post(npy(stack[:1]), output="npy").content).shape == (1, 96, 128)
    assert len(server.post(npy(stack), output="contours").json()["slices"]) == 3
    refused = server.post(npy(stack))
    assert refused.status_code == 422
    assert refused.json()["got"] == "a stack of 3 slices with output=png"


def test_threshold(server: Server, segmenter: Segmenter) -> None:
    image = sample()
    probability = segmenter.probability(image[None])[0, 0]
    for threshold in (0.0, 0.2, 0.9, 1.0):
        mask = load_image(server.post(encoded(image), threshold=threshold).content)
        np.testing.assert_array_equal(mask > 0, probability >= threshold)


def test_requests_in_one_batch_do_not_mix(server: Server, segmenter: Segmenter) -> None:
    images = [sample(64, 64 + 16 * (i % 2), top=8 * i) for i in range(24)]
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(server.post, npy(image), output="probability") for image in images]
        answers = [future.result(120) for future in asked]
    for image, answer in zip(images, answers, strict=True):
        alone = segmenter.probability(image[None])[0]
        assert load_npy(answer.content).tobytes() == alone.tobytes()
    slices, batches = (server.metric(f"emfast_batch_slices_{name}") for name in ("sum", "count"))
    assert slices > batches  # some ran together


@pytest.mark.parametrize(
    ("body", "query", "status", "got", "accepted"),
    [
        (b"", {}, 415, "an empty body", "PNG"),
        (b"%PDF-1.7 no image", {}, 415, "bytes that begin with b'%PDF-1.7'", "PNG"),
        (b"\x89PNG\r\n\x1a\n...", {}, 422, "damaged PNG", "TIFF"),
        (encoded(sample())[:-40], {}, 422, "damaged PNG", "TIFF"),
        (b"II*\0\x08\0\0\0", {}, 422, "truncated or damaged", "another image"),
        (npy(np.zeros((4, 4), np.complex64)), {}, 422, "complex64 of shape (4, 4)", "integers"),
        (npy(np.zeros((4, 4), np.int64)) + b"x", {}, 422, "129 bytes behind", "128 for its shape"),
        (npy(np.array([None])), {}, 422, "object of shape (1,)", "integers"),
        (encoded(sample()), {"pixel_size": 0}, 422, "pixel_size=0", "greater than 0"),
        (encoded(sample()), {"invert": "perhaps"}, 422, "invert=perhaps", "boolean"),
        (encoded(sample()), {"output": "gif"}, 422, "output=gif", "png"),
        (encoded(sample()), {"threshold": "2"}, 422, "threshold=2", "less than or equal to 1"),
        (encoded(sample()), {"threshold": "nan"}, 422, "threshold=nan", "Input should be"),
        (encoded(sample()), {"output": "layers", "label": 2}, 422, "label=2", "1 mitochondria"),
    ],
)
def test_wrong_requests(
    server: Server, body: bytes, query: dict[str, object], status: int, got: str, accepted: str
) -> None:
    answer = server.post(body, **query)
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert set(told) == {"error", "got", "accepted"}
    assert got in told["got"]
    assert accepted in told["accepted"]


def test_wrong_forms_and_paths(server: Server) -> None:
    url = f"{server.url}/v1/segment"
    two = httpx.post(url, files=[("a", encoded(sample())), ("b", encoded(sample()))])
    none = httpx.post(url, data={"file": "text"}, files={}, headers={})
    broken = httpx.post(url, content=b"x", headers={"content-type": "multipart/form-data"})
    assert (two.status_code, none.status_code, broken.status_code) == (422, 415, 422)
    assert "as curl -F" in two.json()["accepted"] and "as curl -F" in broken.json()["accepted"]
    assert server.get("/v1/segment").json()["accepted"] == "POST at this path"
    assert "/v1/segment" in server.get("/segment").json()["accepted"]


def test_what_the_server_tells_of_itself(server: Server, segmenter: Segmenter) -> None:
    model = server.get("/v1/model").json()
    assert model["bundle"]["sha256"] == segmenter.bundle.sha256
    assert model["engine"] == segmenter.info.to_dict()
    assert model["labels"] == ["mitochondria"]
    assert model["limits"] == {"bytes": 2_000_000, "pixels": 1_048_576, "requests": 64}
    assert server.get("/healthz").json() == {"status": "ok"}
    assert server.get("/readyz").json() == {"status": "ready"}
    paths = server.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/v1/segment", "/v1/model", "/healthz", "/readyz", "/metrics"}
    assert "multipart/form-data" in paths["/v1/segment"]["post"]["requestBody"]["content"]
    before = server.metric('emfast_answers_total{path="/v1/segment",status="200"}')
    assert server.post(encoded(sample())).status_code == 200
    assert server.metric('emfast_answers_total{path="/v1/segment",status="200"}') == before + 1
    assert "process_resident_memory_bytes" in server.get("/metrics").text
    assert f'sha256="{segmenter.bundle.sha256}"' in server.get("/metrics").text


def test_answers_hold_what_keeps_browsers_safe(server: Server) -> None:
    for path in ("/", "/docs", "/v1/model", "/nowhere"):
        headers = server.get(path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    refused = server.get("/", host="evil.example")
    assert refused.status_code == 421
    assert server.get("/", host=f"localhost:{server.port}").status_code == 200
