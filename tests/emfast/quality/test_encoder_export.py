from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from emfast.quality.encoder_export import export_encoder
from emfast.quality.features import FeatureNetwork
from emfast.segmentation.preprocessing import normalize
from engines.bundle import TensorSpec, open_bundle
from engines.errors import UserError
from tests.bundles import write_bundle, write_segmenter_bundle

RNG = np.random.default_rng(0)
DOWN = RNG.normal(size=(5, 1, 2, 2)).astype(np.float32)


def write_unet(folder: Path, normalization: str) -> Path:
    """A U-Net of two levels: convolution with stride 2, ReLU, transposed convolution, sigmoid."""
    up = RNG.normal(size=(5, 1, 2, 2)).astype(np.float32)
    shape = ("batch", 1, "height", "width")
    tensor = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "down"], ["wide"], strides=[2, 2]),
            helper.make_node("Relu", ["wide"], ["deepest"]),
            helper.make_node("ConvTranspose", ["deepest", "up"], ["logits"], strides=[2, 2]),
            helper.make_node("Sigmoid", ["logits"], ["probability"]),
        ],
        "unet",
        [helper.make_tensor_value_info("x", tensor, list(shape))],
        [helper.make_tensor_value_info("probability", tensor, list(shape))],
        [numpy_helper.from_array(DOWN, "down"), numpy_helper.from_array(up, "up")],
    )
    return write_bundle(
        folder,
        "segmenter",
        graph,
        [TensorSpec("x", "float32", shape, "normalised greys")],
        [TensorSpec("probability", "float32", shape, "0 to 1")],
        {"classes": 1, "labels": ["m"], "normalization": normalization, "threshold": 0.5},
        multiple=2,
    )


@pytest.mark.parametrize("normalization", ["standardize", "unit"])
def test_features_are_the_mean_bottleneck(tmp_path: Path, normalization: str) -> None:
    segmenter = open_bundle(write_unet(tmp_path / "unet", normalization))
    encoder = export_encoder(segmenter, "test-encoder", tmp_path / "encoder")
    images = RNG.integers(0, 256, (3, 6, 8), dtype=np.uint8)
    images[2] = 77  # nothing to normalise by
    blocks = normalize(images, normalization)[:, 0].reshape(3, 3, 2, 4, 2)  # type: ignore[arg-type]
    expected = np.einsum("nyaxb,cab->ncyx", blocks, DOWN[:, 0]).clip(min=0).mean(axis=(2, 3))
    with FeatureNetwork(encoder.graph("fp32"), "test", threads=1) as network:
        assert network.width == 5
        assert network(images) == pytest.approx(expected, abs=1e-5)
    manifest = open_bundle(tmp_path / "encoder", "encoder").manifest
    assert manifest.model["tensor"] == "deepest"
    assert manifest.model["segmenter_sha256"] == segmenter.sha256
    assert manifest.name == "test-encoder"


def test_a_network_without_a_bottleneck_is_refused(tmp_path: Path) -> None:
    segmenter = open_bundle(write_segmenter_bundle(tmp_path / "flat"))
    with pytest.raises(UserError, match="no bottleneck"):
        export_encoder(segmenter, "test", tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()
