"""Tiny real bundles for tests: a few ONNX nodes with a correct manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from emfast.channels import standard_channels
from emfast.diffusion.schedule import cosine_schedule
from emfast.diffusion.spec import DEEP_FEATURES, DenoiserSpec
from engines.bundle import MANIFEST, Manifest, TensorSpec
from engines.files import sha256


def write_bundle(
    folder: Path,
    kind: str,
    graph: onnx.GraphProto,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    model: dict[str, Any],
    multiple: int = 16,
) -> Path:
    """Write a bundle with one FP32 graph; returns its folder."""
    folder.mkdir(parents=True)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, folder / "model.onnx")
    manifest = Manifest(
        kind=kind,
        name=f"test {kind}",
        emfast="0.0.0",
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        multiple=multiple,
        graphs={"fp32": "model.onnx"},
        model=model,
        files={"model.onnx": sha256(folder / "model.onnx")},
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


def write_segmenter_bundle(
    folder: Path,
    threshold: float = 0.5,
    classes: int = 1,
    normalization: str = "standardize",
    gain: float = 4.0,
) -> Path:
    """A segmenter whose first class is what is darker than the slice's mean.

    probability = sigmoid(gain * slope * mean of 3 x 3 pixels), where the slope of the classes is
    -1, +1, -2, +2, and so on. Pixels outside the slice count as 0.

    Args:
        folder: to make.
        threshold: of the bundle.
        classes: number of classes.
        normalization: "standardize" or "unit".
        gain: of the logits; 0 makes every probability 1/2, NaN makes none a number.
    """
    slopes = np.array([(k // 2 + 1) * (-1 if k % 2 == 0 else 1) for k in range(classes)])
    weight = np.broadcast_to(gain * slopes[:, None, None, None] / 9, (classes, 1, 3, 3))
    free = ("batch", classes, "height", "width")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "weight"], ["logits"], pads=[1, 1, 1, 1]),
            helper.make_node("Sigmoid", ["logits"], ["probability"]),
        ],
        "segmenter",
        [_tensor("x", ("batch", 1, "height", "width"))],
        [_tensor("probability", free)],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    return write_bundle(
        folder,
        "segmenter",
        graph,
        [TensorSpec("x", "float32", ("batch", 1, "height", "width"), "normalised greys")],
        [TensorSpec("probability", "float32", free, "probability of each class, 0 to 1")],
        {
            "classes": classes,
            "labels": ["mitochondria", *(f"class {k}" for k in range(2, classes + 1))],
            "normalization": normalization,
            "threshold": threshold,
        },
    )


def write_denoiser_bundle(
    folder: Path, steps: int = 20, gain: float = 0.5, features: str = DEEP_FEATURES
) -> Path:
    """A denoiser of an image and a mask channel: prediction = gain * mean of 3 x 3 pixels of x.

    Args:
        folder: to make.
        steps: of its schedule.
        gain: of the prediction; NaN makes none a number.
        features: name of the tensor inside, which is the prediction already.
    """
    weight = np.zeros((2, 2, 3, 3), dtype=np.float32)
    weight[0, 0] = weight[1, 1] = gain / 9
    free = ("batch", 2, "height", "width")
    # A graph input that no node reads would be dropped: the timestep is added with weight 0.
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "weight"], [features], pads=[1, 1, 1, 1]),
            helper.make_node("Mul", ["timestep", "zero"], ["nothing"]),
            helper.make_node("Unsqueeze", ["nothing", "axes"], ["column"]),
            helper.make_node("Add", [features, "column"], ["prediction"]),
        ],
        "denoiser",
        [_tensor("x", free), _tensor("timestep", ("batch",))],
        [_tensor("prediction", free)],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.zeros((), np.float32), "zero"),
            numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
        ],
    )
    spec = DenoiserSpec(
        schedule=cosine_schedule(steps),
        channels=standard_channels(140.0, 30.0),
        variance="fixed_small",
        clip=True,
        size=(32, 48),
    )
    return write_bundle(
        folder,
        "denoiser",
        graph,
        [
            TensorSpec("x", "float32", free, "noisy standardised channels"),
            TensorSpec("timestep", "float32", ("batch",), f"0 to {steps - 1}"),
        ],
        [TensorSpec("prediction", "float32", free, "velocity")],
        spec.to_dict(),
    )


def _tensor(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape))
