"""Cutting the frozen feature network out of a segmenter: greys in, one vector an image out.

The encoder bundle that lies beside this file is the yardstick of the feature distances. It is a
copy, made once: training the shipped segmenter again does not change it. A new one makes every
earlier score incomparable, and gets another name.

    python -m emfast.quality.encoder_export SEGMENTER NAME OUT
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.utils import Extractor

from emfast import __version__
from emfast.segmentation.preprocessing import SegmenterSpec
from engines.bundle import MANIFEST, Bundle, Manifest, TensorSpec, open_bundle
from engines.errors import UserError
from engines.files import atomic_folder, sha256

GRAPH = "model.onnx"
CARD = "README.md"

CARD_TEXT = """# {name}

The frozen feature network of `emfast report`: the encoder of `{segmenter}` up to its bottleneck,
the lowest resolution, averaged over the image. It tells how much of each pattern by which the
segmenter finds mitochondria an image holds.

| | shape | type | meaning |
|---|---|---|---|
| input `x` | batch x 1 x height x width | float32 | greys, 0 to 255 |
| output `features` | batch x {width} | float32 | mean activation of each bottleneck channel |

The graph normalises each image as the segmenter normalises a slice, so brightness and contrast
are not measured. Images have at least {multiple} x {multiple} pixels. It was never trained on
synthetic images. It is a copy, known by its SHA-256: training the segmenter again does not change
it. `manifest.json` names the segmenter's own hash, the tensor and the training data.

## Data and licence

Those of the segmenter. The weights were learned from the EPFL (Lucchi) hippocampus CA1 stack, which
EPFL shares for research and asks to be cited: A. Lucchi, Y. Li, K. Smith, P. Fua, *Learning
structured models for segmentation of 2-D and 3-D imagery*.
"""


def export_encoder(segmenter: Bundle, name: str, out: Path) -> Bundle:
    """Write an encoder bundle.

    Args:
        segmenter: a U-Net's bundle. Its bottleneck is the input of the first transposed
            convolution.
        name: of the encoder; a yardstick is known by it.
        out: the bundle's folder; it must not exist or be empty.

    Raises:
        UserError: a network without transposed convolutions, or a folder that holds files.
    """
    spec = SegmenterSpec.from_dict(segmenter.manifest.model)
    model = onnx.shape_inference.infer_shapes(onnx.load(segmenter.graph("fp32")))
    up = next((node for node in model.graph.node if node.op_type == "ConvTranspose"), None)
    if up is None:
        raise UserError(f"{segmenter.path}: has no transposed convolution, so no bottleneck")
    bottleneck = up.input[0]
    encoder = Extractor(model).extract_model(["x"], [bottleneck])
    width = _width(encoder, bottleneck)
    manifest = Manifest(
        kind="encoder",
        name=name,
        emfast=__version__,
        inputs=(TensorSpec("x", "float32", ("batch", 1, "height", "width"), "greys, 0 to 255"),),
        outputs=(TensorSpec("features", "float32", ("batch", width), "mean activations"),),
        multiple=segmenter.manifest.multiple,
        graphs={"fp32": GRAPH},
        model={
            "segmenter": segmenter.manifest.name,
            "segmenter_sha256": segmenter.sha256,
            "tensor": bottleneck,
            "pooling": "mean",
        },
        training=segmenter.manifest.training,
    )
    with atomic_folder(out) as folder:
        graph = _with_greys_and_pooling(encoder, bottleneck, width, spec.normalization)
        onnx.save(graph, folder / GRAPH)
        text = CARD_TEXT.format(
            name=name,
            segmenter=segmenter.manifest.name,
            multiple=manifest.multiple,
            width=width,
        )
        (folder / CARD).write_text(text, encoding="utf-8")
        files = {file: sha256(folder / file) for file in (GRAPH, CARD)}
        text = replace(manifest, files=files).to_json()
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    return open_bundle(out, "encoder")


def _width(model: onnx.ModelProto, tensor: str) -> int:
    """Channels of the convolution that, through its activation, gives ``tensor``."""
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers[tensor]
    while node.op_type != "Conv":
        node = producers[node.input[0]]
    weights = next(w for w in model.graph.initializer if w.name == node.input[1])
    return int(weights.dims[0])


def _with_greys_and_pooling(
    encoder: onnx.ModelProto, bottleneck: str, width: int, normalization: str
) -> onnx.ModelProto:
    """Put the normalisation before an encoder and the mean over all positions behind it."""

    def constant(name: str, values: list[float] | list[int], dtype: type) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values, dtype=dtype), name)

    if normalization == "unit":
        before = [helper.make_node("Div", ["x", "white"], ["normalised"])]
        constants = [constant("white", [255.0], np.float32)]
    else:
        before = [
            helper.make_node("ReduceMean", ["x", "plane"], ["grey_mean"]),
            helper.make_node("Sub", ["x", "grey_mean"], ["centred"]),
            helper.make_node("Mul", ["centred", "centred"], ["squared"]),
            helper.make_node("ReduceMean", ["squared", "plane"], ["variance"]),
            helper.make_node("Sqrt", ["variance"], ["deviation"]),
            # As the segmenter's preprocessing: no contrast is made from an empty image's noise.
            helper.make_node("Max", ["deviation", "least"], ["divisor"]),
            helper.make_node("Div", ["centred", "divisor"], ["normalised"]),
        ]
        constants = [constant("least", [1.0], np.float32)]
    constants.append(constant("plane", [2, 3], np.int64))
    body = [onnx.NodeProto.FromString(node.SerializeToString()) for node in encoder.graph.node]
    for node in body:
        for i, name in enumerate(node.input):
            if name == "x":
                node.input[i] = "normalised"
    behind = helper.make_node("ReduceMean", [bottleneck, "plane"], ["features"], keepdims=0)
    tensor = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [*before, *body, behind],
        "encoder",
        [helper.make_tensor_value_info("x", tensor, ["batch", 1, "height", "width"])],
        [helper.make_tensor_value_info("features", tensor, ["batch", width])],
        [*encoder.graph.initializer, *constants],
    )
    model = helper.make_model(
        graph, opset_imports=encoder.opset_import, ir_version=encoder.ir_version
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Write the encoder bundle of a segmenter that learned from the EPFL stack."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("segmenter", help="a shipped segmenter's name, or a bundle's folder")
    parser.add_argument("name", help="of the encoder")
    parser.add_argument("out", type=Path, help="folder to make")
    arguments = parser.parse_args()
    segmenter = open_bundle(arguments.segmenter, "segmenter")
    bundle = export_encoder(segmenter, arguments.name, arguments.out)
    print(f"{bundle.path}: sha256 {bundle.sha256}")


if __name__ == "__main__":
    main()
