"""Writing FP16 into a graph.

Weights and operations become FP16; casts stand where FP32 and FP16 meet, so that the graph is
consistently typed, as strongly typed engines need it. Kept in FP32 are

* what is computed without an image: the timestep embedding. Its cosines of large angles need the
  digits, and it holds a few numbers an image, so that it costs nothing. In FP16 it nearly doubled
  the largest error of a trained denoiser at late timesteps (0.0038 instead of 0.0022 of the
  output's scale); the first and the last convolution in FP32 changed nothing, and are FP16. What is
  looked up in a table of constants and used in FP16 is stored so: nothing is computed in between;
* normalisations, which sum squares over a whole image and overflow FP16 where activations exceed
  256, and softmax, which exponentiates;
* what follows the last convolutions: FP16 has 11 bits, so that a probability of 0.9998 would
  become 1, and a prediction that adds the noisy image would round it.

Inputs and outputs stay FP32 unless asked. (onnxruntime's own converter leaves the nodes out of
order, rounds the weights of operations that are to stay FP32, and the values between them.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
from onnxscript import ir

from export.onnx import LINEAR

SENSITIVE = (
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LogSoftmax",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "Softmax",
)
# They give numbers of their first input as they are.
MOVING = ("Gather", "GatherND", "Reshape", "Split", "Squeeze", "Unsqueeze")
# Inputs of a floating type that does not follow that of the operation: the scales of Resize.
INDEPENDENT = {("Resize", 1), ("Resize", 2)}
IMAGE_RANK = 4
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def to_fp16(model: onnx.ModelProto, half_io: bool = False) -> onnx.ModelProto:
    """Convert an FP32 graph to FP16, with sensitive operations kept in FP32.

    Args:
        model: all types known, as :func:`export.onnx.to_onnx` makes it.
        half_io: FP16 image inputs and outputs. Inputs that are not images stay FP32: timesteps
            above 2048 have no FP16.
    """
    converted = ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    graph = converted.graph
    images = [value for value in graph.inputs if value.shape and len(value.shape) == IMAGE_RANK]
    kept = _kept_nodes(graph, images)
    nodes = list(graph)
    # The types before anything changes: what is FP32 now becomes FP16 unless it is kept.
    floats = {v for node in nodes for v in node.outputs if v.dtype == FLOAT}
    floats.update(v for v in graph.inputs if v.dtype == FLOAT)
    floats.update(v for v in graph.initializers.values() if v.dtype == FLOAT)
    if half_io:
        for image in images:
            image.dtype = HALF
    cast = _caster(graph)
    for node in nodes:
        dtype = FLOAT if node in kept else HALF
        for index, source in enumerate(node.inputs):
            if source in floats and (node.op_type, index) not in INDEPENDENT:
                node.replace_input_with(index, cast(source, dtype))
        for attribute in node.attributes.values():
            _convert_attribute(node, attribute, dtype)
        for value in node.outputs:
            if value in floats:
                value.dtype = dtype
    for index, inner in enumerate(list(graph.outputs)):
        if inner in floats:
            name, shape = inner.name, inner.shape
            output = cast(inner, HALF if half_io else FLOAT)
            if output is not inner:
                inner.name = f"{name}_inner"
                output.name, output.shape = name, shape
                graph.outputs[index] = output
    ir.passes.common.RemoveUnusedNodesPass()(converted)
    proto: onnx.ModelProto = ir.to_proto(converted)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _kept_nodes(graph: ir.Graph, images: list[ir.Value]) -> set[ir.Node]:
    """The nodes that stay FP32."""
    kept = {node for node in graph if node.op_type in SENSITIVE}
    from_images: set[ir.Value | None] = set(images)
    for node in graph:
        if from_images.isdisjoint(node.inputs):
            kept.add(node)
        else:
            from_images.update(node.outputs)
    after_last = set(graph.outputs)
    for node in reversed(graph):
        if node.op_type not in LINEAR and not after_last.isdisjoint(node.outputs):
            kept.add(node)
            after_last.update(value for value in node.inputs if value is not None)
    outputs = set(graph.outputs)
    for node in reversed(graph):
        if node.op_type in MOVING and outputs.isdisjoint(node.outputs):
            users = {user for value in node.outputs for user in value.consumers()}
            if kept.isdisjoint(users):
                kept.discard(node)
    return kept


def _caster(graph: ir.Graph) -> Callable[[ir.Value, ir.DataType], ir.Value]:
    """Gives a value in another type, by a new initializer or cast, the same one every time."""
    done: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def cast(value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        if (value, dtype) in done:
            return done[value, dtype]
        name = f"{value.name}_{dtype.name.lower()}"
        if value.const_value is not None and value.is_initializer():
            tensor = ir.tensor(_to_half(value.const_value.numpy()), name=name)
            result = ir.Value(
                name=name, shape=value.shape, type=ir.TensorType(dtype), const_value=tensor
            )
            graph.initializers.add(result)
        else:
            node = ir.node("Cast", [value], {"to": dtype}, name=f"{name}_cast")
            result = node.outputs[0]
            result.name, result.shape, result.dtype = name, value.shape, dtype
            producer = value.producer()
            if producer is None:
                graph.insert_before(graph[0], node)
            else:
                graph.insert_after(producer, node)
        done[value, dtype] = result
        return result

    return cast


def _convert_attribute(node: ir.Node, attribute: ir.Attr, dtype: ir.DataType) -> None:
    """Follow the node's type in Cast, ConstantOfShape and the like."""
    if dtype == FLOAT:
        return
    if attribute.name in ("to", "dtype") and attribute.as_int() == FLOAT:
        node.attributes[attribute.name] = ir.AttrInt64(attribute.name, dtype)
    elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == FLOAT:
        tensor = ir.tensor(_to_half(attribute.as_tensor().numpy()))
        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor)


def _to_half(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Nearest FP16, with finite numbers kept finite."""
    limit = float(np.finfo(np.float16).max)
    finite = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    return finite.astype(np.float16)
