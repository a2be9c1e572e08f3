from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional as F

from engines.bundle import TensorSpec
from export.onnx import to_onnx
from export.precision import to_fp16

FREE = ("batch", 2, "height", "width")


class Network(nn.Module):
    """One of each kind: timestep embedding, convolution, group norm, attention, sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(8, 16)
        self.conv = nn.Conv2d(2, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.attention = nn.Conv2d(16, 16, 1)
        self.head = nn.Conv2d(16, 2, 3, padding=1)
        self.register_buffer("frequencies", torch.linspace(1, 40, 8))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        embedding = self.embed(torch.cos(timestep[:, None] * self.frequencies))
        h = self.conv(x) * 200 + embedding[:, :, None, None]
        h = F.silu(self.norm(F.avg_pool2d(h, 2)))
        q = self.attention(h).flatten(2)
        h = h + (q @ torch.softmax(q.transpose(1, 2) @ q, dim=-1)).unflatten(2, h.shape[2:])
        h = F.interpolate(h, scale_factor=2.0, mode="nearest")
        return torch.sigmoid(self.head(h))


@pytest.fixture(scope="module")
def fp32() -> onnx.ModelProto:
    return to_onnx(
        Network().eval(),
        (torch.zeros(2, 2, 8, 12), torch.zeros(2)),
        [
            TensorSpec("x", "float32", FREE, ""),
            TensorSpec("timestep", "float32", ("batch",), ""),
        ],
        [TensorSpec("y", "float32", FREE, "")],
    )


@pytest.fixture(scope="module", params=[False, True], ids=["fp32 io", "fp16 io"])
def fp16(request: pytest.FixtureRequest, fp32: onnx.ModelProto) -> onnx.ModelProto:
    return to_fp16(fp32, half_io=request.param)


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    """The type of every value, from strict shape inference."""
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True, check_type=True).graph
    values = {
        v.name: v.type.tensor_type.elem_type
        for v in (*graph.input, *graph.value_info, *graph.output)
    }
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


def run(proto: onnx.ModelProto, x: npt.NDArray[Any], t: npt.NDArray[Any]) -> npt.NDArray[Any]:
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return np.asarray(session.run(None, {"x": x, "timestep": t})[0])


def test_convolutions_are_fp16_and_sensitive_operations_fp32(fp16: onnx.ModelProto) -> None:
    types = element_types(fp16)
    found: dict[str, set[int]] = {}
    for node in fp16.graph.node:
        found.setdefault(node.op_type, set()).add(types[node.input[0]])
    assert found["Conv"] == {TensorProto.FLOAT16}
    assert found["MatMul"] == {TensorProto.FLOAT16}
    assert found["Resize"] == {TensorProto.FLOAT16}
    for kept in ("Cos", "Gemm", "GroupNormalization", "Softmax"):
        assert found[kept] == {TensorProto.FLOAT}, kept
    # The sigmoid of SiLU is FP16, that of the output is not.
    sigmoids = {types[n.input[0]] for n in fp16.graph.node if n.op_type == "Sigmoid"}
    assert sigmoids == {TensorProto.FLOAT, TensorProto.FLOAT16}
    weights = {t.name: t.data_type for t in fp16.graph.initializer}
    assert any(d == TensorProto.FLOAT for n, d in weights.items() if "frequencies" in n)
    assert all(d == TensorProto.FLOAT for n, d in weights.items() if n.startswith("embed."))


def test_every_operation_has_inputs_of_one_floating_type(fp16: onnx.ModelProto) -> None:
    types = element_types(fp16)
    floating = {TensorProto.FLOAT, TensorProto.FLOAT16}
    for node in fp16.graph.node:
        inputs = [types[name] for name in node.input if name]
        if node.op_type == "Resize":
            inputs = inputs[:1]
        assert len(floating & set(inputs)) <= 1, node
        if node.op_type == "Cast":
            assert node.attribute[0].i != inputs[0], "a cast that does nothing"


def test_no_value_is_rounded_on_its_way_between_fp32_operations(fp16: onnx.ModelProto) -> None:
    casts = {n.output[0]: n for n in fp16.graph.node if n.op_type == "Cast"}
    for cast in casts.values():
        before = casts.get(cast.input[0])
        assert before is None, "a cast of a cast"


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (3, 2, 16, 4)])
def test_fp16_graph_computes_the_same_but_for_rounding(
    fp32: onnx.ModelProto, fp16: onnx.ModelProto, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    # Activations of some hundreds would overflow an FP16 group norm, timesteps above 2048 have no
    # FP16 number, and their cosines need every digit.
    x = rng.standard_normal(shape, dtype=np.float32)
    t = np.linspace(3001, 3999, shape[0], dtype=np.float32)
    expected = run(fp32, x, t)
    dtype = np.float16 if fp16.graph.input[0].type.tensor_type.elem_type == 10 else np.float32
    got = run(fp16, x.astype(dtype), t)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected, atol=5e-3)


def test_what_follows_the_last_convolution_is_not_rounded() -> None:
    class Skip(nn.Module):
        """The noisy image passes to the prediction beside the network."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1, bias=False)
            nn.init.zeros_(self.conv.weight)

        def forward(self, x: Tensor) -> Tensor:
            return x * 0.3 + self.conv(x)

    spec = [TensorSpec("x", "float32", FREE, "")]
    proto = to_onnx(Skip().eval(), (torch.zeros(2, 2, 4, 6),), spec, [replace(spec[0], name="y")])
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 3), dtype=np.float32)
    session = onnxruntime.InferenceSession(to_fp16(proto).SerializeToString())
    (y,) = session.run(None, {"x": x})
    np.testing.assert_allclose(y, x * np.float32(0.3), rtol=1e-6)


def test_inputs_and_outputs_stay_fp32_unless_asked(fp32: onnx.ModelProto) -> None:
    types = element_types(to_fp16(fp32))
    assert [types[name] for name in ("x", "timestep", "y")] == [TensorProto.FLOAT] * 3
    types = element_types(to_fp16(fp32, half_io=True))
    assert types["x"] == types["y"] == TensorProto.FLOAT16
    assert types["timestep"] == TensorProto.FLOAT


def test_weights_too_large_for_fp16_stay_finite() -> None:
    conv = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(conv.weight, -1e6)
    free = ("batch", 1, "height", "width")
    proto = to_onnx(
        conv.eval(),
        (torch.zeros(2, 1, 4, 6),),
        [TensorSpec("x", "float32", free, "")],
        [TensorSpec("y", "float32", free, "")],
    )
    (weight,) = (onnx.numpy_helper.to_array(t) for t in to_fp16(proto).graph.initializer)
    assert weight.item() == -65504


def test_the_fp32_graph_is_left_as_it_was(fp32: onnx.ModelProto) -> None:
    before = fp32.SerializeToString(deterministic=True)
    to_fp16(fp32, half_io=True)
    assert fp32.SerializeToString(deterministic=True) == before


class Lookup(nn.Module):
    """A convolution whose results are scaled by a row of a table, with another that is output."""

    table: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 3, padding=1)
        self.register_buffer("table", torch.rand(50, 4))
        self.register_buffer("shift", torch.rand(50, 2))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        row = timestep.long()
        h = self.conv(x) * self.table[row][:, :, None, None]
        result: Tensor = self.head(h) + self.shift[row][:, :, None, None]
        return result


def test_tables_are_stored_as_they_are_used() -> None:
    example = torch.randn(2, 2, 8, 12), torch.tensor([3.0, 49.0])
    inputs = [
        TensorSpec("x", "float32", FREE, ""),
        TensorSpec("timestep", "float32", ("batch",), ""),
    ]
    fp32 = to_onnx(Lookup().eval(), example, inputs, [TensorSpec("y", "float32", FREE, "")])
    fp16 = to_fp16(fp32)
    types = {tuple(t.dims): t.data_type for t in fp16.graph.initializer if t.dims[:1] == [50]}
    assert types == {(50, 4): TensorProto.FLOAT16, (50, 2): TensorProto.FLOAT}
    x, timestep = (tensor.numpy() for tensor in example)
    expected, got = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(
            None, {"x": x, "timestep": timestep}
        )
        for m in (fp32, fp16)
    )
    np.testing.assert_allclose(got[0], expected[0], atol=3e-3)
