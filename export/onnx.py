"""From a PyTorch module to an ONNX graph, FP32, with its weights inside."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import ir
from onnxscript import opset21 as opset
from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from torch import Tensor, nn

from engines.bundle import TensorSpec

# The first opset whose GroupNormalization takes one scale a channel, as PyTorch's does. In older
# ones every group norm is written out as several operations.
OPSET = opset.version

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def to_onnx(
    module: nn.Module,
    example: Sequence[Tensor],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    inner: Sequence[str] = (),
) -> onnx.ModelProto:
    """Export a module.

    Batch normalisations become part of the convolutions before them, and so do multiplications
    by a constant beside a convolution.

    Args:
        module: in evaluation mode; takes the inputs in their order and returns one tensor, or a
            tuple in the order of ``outputs``.
        example: one tensor for each input. Free axes need a length above 1.
        inputs: names and shapes; axes with a name are free.
        outputs: names and shapes, with the free axes named as those of the inputs.
        inner: names of tensors that the module returns behind its outputs. They are no outputs of
            the graph, but bear these names in it, for engines that take it apart.
    """
    free = tuple(
        {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in inputs
    )
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            tuple(example),
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in inputs],
            output_names=[*(spec.name for spec in outputs), *inner],
            dynamic_shapes=free,
            custom_translation_table={torch.ops.aten.pixel_unshuffle.default: _space_to_depth},
            verbose=False,
        )
    assert program is not None  # only the exporter before dynamo returns nothing
    model = program.model
    fold_scalars(model)
    del model.graph.outputs[len(outputs) :]
    RemoveUnusedNodesPass()(model)
    ClearMetadataAndDocStringPass()(model)  # holds stack traces with this machine's paths
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    for spec, value in zip(outputs, model.graph.outputs, strict=True):
        # The exporter writes free axes as formulas, "16*((height//16))".
        value.shape = ir.Shape(spec.shape)
    proto: onnx.ModelProto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _space_to_depth(x: Any, r: int) -> Any:
    """Two operations for ``pixel_unshuffle`` of images, where PyTorch writes twenty."""
    # SpaceToDepth puts channel c of the block's pixel k at k channels + c, PyTorch at c r^2 + k.
    channels = x.shape[1]
    order = np.arange(channels * r**2).reshape(r**2, channels).T.reshape(-1)
    indices: Any = opset.Constant(value_ints=order.tolist())
    return opset.Gather(opset.SpaceToDepth(x, blocksize=r), indices, axis=1)


def fold_scalars(model: ir.Model) -> None:
    """Make multiplications by a constant part of the linear operation before or after them."""
    for node in list(model.graph):
        product = node.outputs[0]
        x, factor = _constant_factor(node)
        if x is None or product.is_graph_output():
            continue
        before = x.producer()
        users = [user for user, _ in product.uses()]
        if before is not None and len(x.uses()) == 1 and _owns(before, before.inputs[1:]):
            for value in before.inputs[1:]:  # (W x + b) c = (W c) x + b c
                _scale(value, factor)
        elif all(_owns(user, user.inputs[1:2]) for user in users) and all(
            index == 0 for _, index in product.uses()
        ):
            for user in users:  # W (x c) + b = (W c) x + b
                _scale(user.inputs[1], factor)
        else:
            continue
        product.replace_all_uses_with(x)
        model.graph.remove(node, safe=True)


def _constant_factor(node: ir.Node) -> tuple[ir.Value | None, float]:
    """x and c where a node computes x * c or x / c for one number c; otherwise None."""
    if node.op_type not in ("Mul", "Div"):
        return None, 1.0
    first, second = node.inputs
    if (number := _number(second)) is not None:
        return first, number if node.op_type == "Mul" else 1 / number
    if node.op_type == "Mul" and (number := _number(first)) is not None:
        return second, number
    return None, 1.0


def _number(value: ir.Value | None) -> float | None:
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().item())


def _owns(node: ir.Node, weights: Sequence[ir.Value | None]) -> bool:
    """Whether a node is linear in its first input, with constant weights that no other shares."""
    return node.op_type in LINEAR and all(
        w is not None and w.is_initializer() and len(w.uses()) == 1 for w in weights
    )


def _scale(value: ir.Value | None, factor: float) -> None:
    assert value is not None
    assert value.const_value is not None
    array = value.const_value.numpy()
    value.const_value = ir.tensor((array * factor).astype(array.dtype), name=value.name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about itself and about packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
