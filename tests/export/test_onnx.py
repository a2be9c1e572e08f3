from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from engines.bundle import TensorSpec
from export.onnx import OPSET, to_onnx

FREE = ("batch", 3, "height", "width")


class Network(nn.Module):
    """Batch norms after both kinds of convolution, and constants around convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.up_norm = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 3, 1)
        self.embed = nn.Linear(1, 4)
        for norm in (self.norm, self.up_norm):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv(x / 3)))  # before
        h = torch.relu(self.up_norm(self.up(2 * h)))  # before, constant first
        h = h * (self.embed(t[:, None]) * 0.25 + 1)[:, :, None, None]  # after a linear layer
        return torch.tanh(self.head(h) * 1.5) * 4  # after; the last one has nothing to go to


class Shared(nn.Module):
    """Constants that must stay: products and weights that something else uses too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv(x)
        b = a * 2  # a is used again
        c = self.conv(b)  # the weights are used twice
        d = c * 0.5
        return torch.relu(d) + a


def specs(*shapes: tuple[int | str, ...]) -> list[TensorSpec]:
    return [TensorSpec(n, "float32", s, "") for n, s in zip("xt", shapes, strict=False)]


def run(
    proto: onnx.ModelProto, *tensors: Tensor
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    names = [i.name for i in session.get_inputs()]
    (result,) = session.run(None, dict(zip(names, (t.numpy() for t in tensors), strict=True)))
    return np.asarray(result)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return Network().eval()


@pytest.fixture(scope="module")
def graph(network: nn.Module) -> onnx.ModelProto:
    return to_onnx(
        network,
        (torch.zeros(2, 3, 8, 12), torch.zeros(2)),
        specs(FREE, ("batch",)),
        [TensorSpec("y", "float32", FREE, "")],
    )


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 3, 16, 4), (2, 3, 6, 10)])
def test_graph_computes_what_the_module_does_at_any_shape(
    network: nn.Module, graph: onnx.ModelProto, shape: tuple[int, ...]
) -> None:
    x, t = torch.randn(shape), torch.rand(shape[0]) * 700
    with torch.no_grad():
        expected = network(x, t).numpy()
    np.testing.assert_allclose(run(graph, x, t), expected, atol=2e-5)


def test_norms_and_constants_are_part_of_the_convolutions(graph: onnx.ModelProto) -> None:
    kinds = Counter(node.op_type for node in graph.graph.node)
    # What is left to multiply: h by its scale, and tanh by 4.
    assert kinds["Mul"] == 2
    assert kinds["Div"] == 0
    assert kinds["BatchNormalization"] == 0


def test_axes_and_names_are_those_asked_for(graph: onnx.ModelProto) -> None:
    found = {
        value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert found == {"x": FREE, "t": ("batch",), "y": FREE}
    assert {o.domain: o.version for o in graph.opset_import} == {"": OPSET}


def test_inner_tensors_have_names_and_are_no_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            inside = self.first(x) * 2
            return self.second(inside), inside

    module = Two().eval()
    spec, out = specs(FREE), [TensorSpec("y", "float32", ("batch", 3, "rows", "columns"), "")]
    graph = to_onnx(module, (torch.zeros(2, 3, 8, 12),), spec, out, ["inside"])
    assert [output.name for output in graph.graph.output] == ["y"]
    assert [node.output[0] for node in graph.graph.node][-1] == "y"
    assert "inside" in {name for node in graph.graph.node for name in node.output}
    x = torch.randn(1, 3, 6, 9)
    with torch.no_grad():
        np.testing.assert_allclose(run(graph, x), module(x)[0].numpy(), atol=1e-5)


def test_weights_are_inside_and_no_path_of_this_machine(graph: onnx.ModelProto) -> None:
    assert all(not tensor.external_data for tensor in graph.graph.initializer)
    data = graph.SerializeToString()
    for path in (Path(__file__).parents[2], Path(torch.__file__).parent):
        assert str(path).encode() not in data


def test_constants_of_shared_values_stay() -> None:
    module = Shared().eval()
    spec = specs(FREE)
    graph = to_onnx(
        module, (torch.zeros(2, 3, 4, 6),), spec, [TensorSpec("y", "float32", FREE, "")]
    )
    x = torch.randn(1, 3, 5, 7)
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(run(graph, x), expected, atol=1e-5)
    assert Counter(node.op_type for node in graph.graph.node)["Mul"] == 2


@pytest.mark.parametrize(("channels", "factor"), [(3, 2), (2, 4)])
def test_space_to_depth_keeps_the_order_of_channels(channels: int, factor: int) -> None:
    module = nn.PixelUnshuffle(factor).eval()
    spec = specs(("batch", channels, "height", "width"))
    out = TensorSpec("y", "float32", ("batch", channels * factor**2, "rows", "columns"), "")
    graph = to_onnx(module, (torch.zeros(2, channels, 2 * factor, 3 * factor),), spec, [out])
    x = torch.randn(1, channels, 4 * factor, 2 * factor)
    np.testing.assert_array_equal(run(graph, x), module(x).numpy())
    assert [node.op_type for node in graph.graph.node] == ["SpaceToDepth", "Gather"]
