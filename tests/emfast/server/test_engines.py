"""The server on engines other than onnxruntime."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from emfast.segmentation.segmenter import Segmenter
from tests.emfast.server.serving import load_npy, npy, sample, serving


@pytest.mark.parametrize(("engine", "package"), [("mnn", "MNN"), ("openvino", "openvino")])
def test_several_workers(tmp_path: Path, engine: str, package: str) -> None:
    pytest.importorskip(package)
    images = [sample(64, 64 + 16 * (i % 2), top=8 * i) for i in range(8)]
    options = ("--engine", engine, "--workers", "2", "--max-batch", "2")
    with serving(tmp_path, *options) as server, ThreadPoolExecutor(4) as pool:
        assert server.get("/v1/model").json()["engine"]["engine"] == engine
        answers = list(pool.map(lambda i: server.post(npy(i), output="probability"), images))
        assert server.get("/healthz").json() == {"status": "ok"}
        assert server.stop() == 0
    with Segmenter.open(engine=engine, precision="fp32", threads=1) as segmenter:
        for image, answer in zip(images, answers, strict=True):
            alone = segmenter.probability(image[None])[0]
            # These engines plan anew for a batch: equal but for rounding.
            np.testing.assert_allclose(load_npy(answer.content), alone, atol=1e-3)
