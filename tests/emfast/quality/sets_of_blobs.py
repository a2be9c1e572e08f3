"""A small real stack and sets that stand in for synthetic ones, with bundles to measure them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from PIL import Image
from scipy.ndimage import gaussian_filter

from emfast.training.batches import flip_turn

SIDE = 48


def stack(
    slices: int = 12, height: int = 120, width: int = 150, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Slices with dark objects, the same as its masks; every slice its own.

    Returns:
        Images and masks, uint8 (slices, height, width).
    """
    rng = np.random.default_rng(seed)
    fields = np.stack([gaussian_filter(rng.normal(size=(height, width)), 6) for _ in range(slices)])
    fields /= fields.std()
    masks = fields < -1.2
    noise = rng.normal(0, 6, fields.shape)
    images = 150 + 15 * fields.clip(-1.2) - 50 * masks + noise
    return images.clip(0, 255).round().astype(np.uint8), masks.astype(np.uint8)


def cut(
    images: np.ndarray, masks: np.ndarray, count: int, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Tiles at random places, flipped and turned: uint8 (count, SIDE, SIDE) of either."""
    rng = np.random.default_rng(seed)
    tiles = np.empty((2, count, SIDE, SIDE), dtype=np.uint8)
    for i in range(count):
        z = rng.integers(len(images))
        y, x = (rng.integers(length - SIDE + 1) for length in images.shape[1:])
        symmetry = int(rng.integers(8))
        for target, source in zip(tiles, (images, masks), strict=True):
            target[i] = flip_turn(source[z, y : y + SIDE, x : x + SIDE], symmetry)
    return tiles[0], tiles[1]


def write_set(folder: Path, images: np.ndarray, masks: np.ndarray) -> Path:
    """Write images/ and masks/ as ``emfast generate`` does."""
    for name, arrays in (("images", images), ("masks", masks * np.uint8(255))):
        (folder / name).mkdir(parents=True)
        for i, array in enumerate(arrays):
            Image.fromarray(array).save(folder / name / f"{i:06d}.png")
    return folder


def write_network(path: Path) -> Path:
    """Eight features: the mean of what is left after eight random 5 x 5 filters and a ReLU."""
    filters = np.random.default_rng(0).normal(size=(8, 1, 5, 5)).astype(np.float32) / 50
    tensor = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["greys", "filters"], ["filtered"]),
            helper.make_node("Relu", ["filtered"], ["active"]),
            helper.make_node("ReduceMean", ["active", "plane"], ["features"], keepdims=0),
        ],
        "network",
        [helper.make_tensor_value_info("greys", tensor, ["batch", 1, "height", "width"])],
        [helper.make_tensor_value_info("features", tensor, ["batch", 8])],
        [
            numpy_helper.from_array(filters, "filters"),
            numpy_helper.from_array(np.array([2, 3], np.int64), "plane"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path
