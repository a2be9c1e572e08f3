"""Writing INT8 into a graph: convolutions on 8-bit numbers, for CPUs.

Quantize and dequantize operations (QDQ) stand around convolutions and around what passes their
8-bit results on; runtimes fuse them. Ranges of activations are the smallest and the largest value
on the calibration's inputs. What was measured on the two networks of this project:

* Weights have a scale for each output channel, and 7 bits. A CPU without VNNI adds pairs of
  products in 16 bits, which 8-bit weights overflow: the denoiser's error grew by up to a fifth on
  such a CPU (emulated). 7-bit weights cannot, and had the same error there; it is 4 to 10 % larger
  than that of 8-bit weights on a CPU with VNNI.
* Inputs and outputs of a convolution are quantized. onnxruntime has no other INT8 convolution;
  OpenVINO is as fast with quantized inputs alone.
* A network that runs on its own output adds up its errors. There the first and the last
  convolution and those of 1 x 1 pixels, through which everything else passes, stay FP32: the output
  error halves (0.021 to 0.011 of its scale in the middle of a sampling), a step takes 10 to 25 %
  longer. A segmenter's Dice did not gain by it.
* What is left of a denoiser's error is partly the same for all images of a timestep, and shifts the
  greys of a set. Its mean on the calibration's inputs is added to the output again.
* Tables that are looked up, such as the factors of all timesteps, are stored in FP16: 11 bits are
  finer than the 8 of what they scale, and in FP32 they would be half of a denoiser's file.
* Entropy gave the same ranges as the extremes; percentiles made the segmenter's mean error larger,
  the denoiser's by a tenth smaller and its largest error larger.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from engines.engine import Array
from engines.errors import UserError

CONVOLUTIONS = ("Conv", "ConvTranspose")
# Of 8-bit inputs they make 8-bit outputs without computing more than a maximum.
PASSING = ("Concat", "MaxPool", "Relu")
LOOKUPS = ("Gather", "GatherND")
# Numbers in a table that is worth storing in FP16.
TABLE_SIZE = 1 << 16


@dataclass(frozen=True)
class Calibration:
    """What a network is quantized with.

    Attributes:
        batches: typical inputs, float32, one array for each input's name.
        source: of the batches, in words.
        iterated: whether the network is run on its own output, again and again.
        counter: the input, (batch,), that tells an iterated network in which of its runs it is.
    """

    batches: Sequence[Mapping[str, Array]]
    source: str
    iterated: bool
    counter: str | None = None


def to_int8(model: onnx.ModelProto, calibration: Calibration) -> onnx.ModelProto:
    """Convert an FP32 graph to INT8 convolutions; inputs and outputs stay FP32.

    Args:
        model: as :func:`export.onnx.to_onnx` makes it. It is left as it was.
        calibration: decides on the ranges of activations.

    Raises:
        UserError: a network without a convolution to quantize.
    """
    # Only here: without onnxruntime its absence is told first, by export.bundle.check_options.
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    nodes = quantized_nodes(model.graph, calibration.iterated)
    if not nodes:
        raise UserError("the network has no convolution that INT8 suits; leave out int8")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)  # given as it is, it would be changed
        quantize_static(
            source,
            target,
            _Batches(calibration.batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted({node.op_type for node in nodes}),
            nodes_to_quantize=[node.name for node in nodes],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            calibrate_method=CalibrationMethod.MinMax,
        )
        converted = onnx.load(target)
    _store_tables_in_fp16(converted.graph)
    if calibration.counter is not None:
        _add_mean_errors(converted, model, calibration.batches, calibration.counter)
    onnx.checker.check_model(converted, full_check=True)
    return converted


def quantized_nodes(graph: onnx.GraphProto, iterated: bool) -> list[onnx.NodeProto]:
    """The convolutions that become INT8, and what passes their results on.

    Args:
        graph: with its weights as initializers.
        iterated: as in :class:`Calibration`.
    """
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    convolutions = [
        node for node in graph.node if node.op_type in CONVOLUTIONS and node.input[1] in weights
    ]
    if iterated:
        convolutions = [
            node for node in convolutions[1:-1] if math.prod(weights[node.input[1]][2:]) > 1
        ]
    chosen = {node.name for node in convolutions}
    in_8_bits: set[str] = set()
    for node in graph.node:
        if node.op_type in PASSING and in_8_bits.issuperset(node.input):
            chosen.add(node.name)
        if node.name in chosen:
            in_8_bits.update(node.output)
    return [node for node in graph.node if node.name in chosen]


def _store_tables_in_fp16(graph: onnx.GraphProto) -> None:
    """Large constants that are looked up become FP16 and a cast, which engines compute once."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type in LOOKUPS]:
        table = constants.pop(node.input[0], None)
        if table is None or table.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(table)
        if values.size < TABLE_SIZE or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        half = f"{table.name}_fp16"
        cast = helper.make_node("Cast", [half], [table.name], half, to=onnx.TensorProto.FLOAT)
        graph.initializer.remove(table)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), half))
        graph.node.insert(0, cast)


def _add_mean_errors(
    converted: onnx.ModelProto,
    exact: onnx.ModelProto,
    batches: Sequence[Mapping[str, Array]],
    counter: str,
) -> None:
    """Add to the output of ``converted`` what it lacks on average, for each run and channel.

    Between the runs of ``batches`` the means are interpolated.
    """
    from onnxruntime import InferenceSession

    sessions = [InferenceSession(m.SerializeToString()) for m in (exact, converted)]
    errors: dict[int, npt.NDArray[np.float32]] = {}
    for batch in batches:
        expected, got = (session.run(None, dict(batch))[0] for session in sessions)
        errors[int(batch[counter][0])] = (expected - got).mean(axis=(0, 2, 3))
    runs = np.arange(max(errors) + 1)
    known = sorted(errors)
    channels = np.stack([errors[run] for run in known], axis=1)
    means = np.stack([np.interp(runs, known, values) for values in channels], axis=1)
    table = means.astype(np.float32)[:, :, None, None]
    graph = converted.graph
    output = graph.output[0].name
    lacking, names = f"{output}_lacking", [f"{output}_{part}" for part in ("means", "run", "mean")]
    for node in graph.node:
        node.output[:] = [lacking if name == output else name for name in node.output]
        node.input[:] = [lacking if name == output else name for name in node.input]
    graph.initializer.append(numpy_helper.from_array(table, names[0]))
    graph.node.extend(
        [
            helper.make_node("Cast", [counter], [names[1]], names[1], to=onnx.TensorProto.INT64),
            helper.make_node("Gather", names[:2], [names[2]], names[2]),
            helper.make_node("Add", [lacking, names[2]], [output], output),
        ]
    )


class _Batches:
    """Hands out the calibration's batches as onnxruntime's CalibrationDataReader does."""

    def __init__(self, batches: Sequence[Mapping[str, Array]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else dict(batch)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's advice to run its own preprocessing, which finds nothing to do."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
