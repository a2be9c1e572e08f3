from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from emfast.quality import features
from emfast.quality.features import ENCODER, FeatureNetwork
from engines.errors import UserError
from engines.files import sha256

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 48, 64), dtype=np.uint8)
FREE = ("batch", 1, "height", "width")


def write_network(
    path: Path,
    shape: tuple[int | str, ...] = FREE,
    scale: float = 1.0,
    keep: bool = False,
    dtype: int = onnx.TensorProto.FLOAT,
) -> Path:
    """Features are the mean grey of each channel, times ``scale``; with ``keep``, a map."""
    output = (shape[0], shape[1], 1, 1) if keep else (shape[0], shape[1])
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["greys", "plane"], ["mean"], keepdims=int(keep)),
            helper.make_node("Mul", ["mean", "scale"], ["vector"]),
        ],
        "network",
        [helper.make_tensor_value_info("greys", dtype, list(shape))],
        [helper.make_tensor_value_info("vector", dtype, list(output))],
        [
            numpy_helper.from_array(np.array([2, 3], np.int64), "plane"),
            numpy_helper.from_array(
                np.array(scale, helper.tensor_dtype_to_np_dtype(dtype)), "scale"
            ),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def test_the_shipped_encoder_is_the_yardstick_that_it_was() -> None:
    """Another file makes every earlier score incomparable: give it another name then."""
    with FeatureNetwork.open(threads=1) as network:
        assert network.name == "epfl-encoder-1"
        assert network.sha256 == sha256(ENCODER / "model.onnx")
        assert network.sha256[:16] == "3c7527828dfdab5e"
        assert network.width == 256
        vectors = network(RNG.integers(0, 256, (3, 64, 96), dtype=np.uint8))
    assert vectors.shape == (3, 256) and vectors.dtype == np.float32


def test_the_shipped_encoder_measures_structure_and_not_brightness() -> None:
    dark = RNG.integers(40, 100, (1, 64, 64), dtype=np.uint8)
    bright = 2 * dark + np.uint8(20)
    with FeatureNetwork.open(threads=1) as network:
        vectors = network(np.concatenate([dark, bright, dark[:, ::-1, ::2].repeat(2, axis=2)]))
    assert vectors[1] == pytest.approx(vectors[0], abs=1e-4)
    assert np.abs(vectors[2] - vectors[0]).max() > 0.01


def test_an_altered_encoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "encoder"
    shutil.copytree(ENCODER, copy)
    (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes()[:-1] + b"x")
    monkeypatch.setattr(features, "ENCODER", copy)
    with pytest.raises(UserError, match="was altered or damaged"):
        FeatureNetwork.open()


def test_a_users_network_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BATCH", 2)
    path = write_network(tmp_path / "means.onnx")
    with FeatureNetwork.open(path, threads=1) as network:
        vectors = network(IMAGES)
        assert network(IMAGES[:0]).shape == (0, 1)
    assert (network.name, network.sha256, network.width) == ("means.onnx", sha256(path), 1)
    assert vectors[:, 0] == pytest.approx(IMAGES.mean(axis=(1, 2)), rel=1e-5)


def test_a_network_of_three_channels_and_one_size(tmp_path: Path) -> None:
    path = write_network(tmp_path / "rgb.onnx", ("batch", 3, 24, 32), scale=0.5)
    with FeatureNetwork.open(path, threads=1) as network:
        vectors = network(IMAGES)
    assert vectors.shape == (5, 3)
    assert np.array_equal(vectors[:, 0], vectors[:, 2])
    assert vectors[:, 0] == pytest.approx(IMAGES.mean(axis=(1, 2)) / 2, rel=0.02)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    cases = {
        tmp_path / "missing.onnx": "no such file; give the ONNX file of a feature network",
        tmp_path / "text.onnx": "cannot load it",
        write_network(tmp_path / "two.onnx", ("batch", 2, "h", "w")): "takes one input, float",
        write_network(tmp_path / "fixed.onnx", (4, 1, "h", "w")): "with a free batch",
        write_network(
            tmp_path / "double.onnx", dtype=onnx.TensorProto.DOUBLE
        ): r"takes greys tensor\(double\)",
        write_network(tmp_path / "map.onnx", keep=True): "gives vector .* gives one output",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            FeatureNetwork.open(path, threads=1)
        assert "\n" not in str(error.value)
    nothing = write_network(tmp_path / "nan.onnx", scale=float("nan"))
    with FeatureNetwork.open(nothing, threads=1) as network, pytest.raises(UserError, match="numb"):
        network(IMAGES)
