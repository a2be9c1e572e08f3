from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from engines.bundle import TensorSpec
from engines.errors import UserError
from export.onnx import to_onnx
from export.quantization import Calibration, quantized_nodes, to_int8

FREE = ("batch", 2, "height", "width")
Array = npt.NDArray[np.float32]


class UNet(nn.Module):
    """Convolutions of 3 x 3, 2 x 2 transposed and 1 x 1, and what stands between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.mix = nn.Conv2d(16, 8, 1)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.stem(x))
        h = self.up(F.relu(self.down(F.max_pool2d(skip, 2))))
        h = self.mix(torch.cat([skip, h], dim=1))
        return self.head(F.silu(self.last(h)))


def export(module: nn.Module, multiple: int = 2) -> onnx.ModelProto:
    inputs = [TensorSpec("x", "float32", FREE, "")]
    example = (torch.zeros(2, 2, 2 * multiple, 3 * multiple),)
    return to_onnx(module.eval(), example, inputs, [TensorSpec("y", "float32", FREE, "")])


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def run(model: onnx.ModelProto, x: Array) -> Array:
    return np.asarray(
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    )


def calibration(iterated: bool = False) -> Calibration:
    return Calibration(
        [{"x": noise(2, 2, 16, 16, seed=seed)} for seed in range(4)], "noise", iterated
    )


@pytest.fixture(scope="module")
def fp32() -> onnx.ModelProto:
    return export(UNet())


def kinds(model: onnx.ModelProto, iterated: bool) -> list[str]:
    """Operations that become INT8, convolutions with the shape of their kernel."""
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    return [
        f"{n.op_type} {weights[n.input[1]]}" if "Conv" in n.op_type else n.op_type
        for n in quantized_nodes(model.graph, iterated)
    ]


def test_what_becomes_int8(fp32: onnx.ModelProto) -> None:
    assert kinds(fp32, iterated=False) == [
        "Conv (8, 2, 3, 3)",
        "Relu",
        "MaxPool",
        "Conv (16, 8, 3, 3)",
        "Relu",
        "ConvTranspose (16, 8, 2, 2)",
        "Concat",
        "Conv (8, 16, 1, 1)",
        "Conv (8, 8, 3, 3)",
        "Conv (2, 8, 3, 3)",
    ]
    # The ends stay FP32, what is of 1 x 1 pixels, and what would have to be rounded for 8 bits.
    assert kinds(fp32, iterated=True) == [
        "Conv (16, 8, 3, 3)",
        "Relu",
        "ConvTranspose (16, 8, 2, 2)",
        "Conv (8, 8, 3, 3)",
    ]


@pytest.mark.parametrize("iterated", [False, True])
@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (3, 2, 16, 24)])
def test_int8_computes_nearly_the_same_at_any_size(
    fp32: onnx.ModelProto, iterated: bool, shape: tuple[int, ...]
) -> None:
    x = noise(*shape, seed=9)
    expected = run(fp32, x)
    error = np.abs(run(to_int8(fp32, calibration(iterated)), x) - expected).max()
    assert 0 < error < 0.1 * expected.std() + 0.05 * np.abs(expected).max()


def test_the_ends_of_an_iterated_network_keep_its_errors_small(fp32: onnx.ModelProto) -> None:
    x = noise(2, 2, 16, 16, seed=9)
    expected = run(fp32, x)
    errors = [
        np.abs(run(to_int8(fp32, calibration(iterated)), x) - expected).mean()
        for iterated in (False, True)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_weights_have_7_bits_and_a_scale_a_channel(fp32: onnx.ModelProto) -> None:
    tensors = {
        t.name: numpy_helper.to_array(t) for t in to_int8(fp32, calibration()).graph.initializer
    }
    weights = {name: a for name, a in tensors.items() if a.dtype == np.int8 and a.ndim == 4}
    assert len(weights) == 6
    for name, weight in weights.items():
        assert np.abs(weight.astype(int)).max() <= 64
        scales = tensors[name.replace("_quantized", "_scale")]
        outputs = weight.shape[1] if name.startswith("up.") else weight.shape[0]
        assert scales.shape == (outputs,)


SATURATING = """
import sys
import numpy as np
from pathlib import Path
from engines.openvino import OpenVINOEngine
with OpenVINOEngine(Path(sys.argv[1]), "int8", 1) as engine:
    np.save(sys.argv[2], engine.run({"x": np.load(sys.argv[3])})["y"])
"""


def test_a_cpu_without_vnni_computes_the_same(tmp_path: Path) -> None:
    """It adds pairs of products in 16 bits: 255 x 127 twice would be cut to half of it."""
    pytest.importorskip("openvino")
    middle = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    nn.init.constant_(middle.weight, 0.5)
    first, last = nn.Conv2d(2, 16, 1, bias=False), nn.Conv2d(16, 2, 1, bias=False)
    nn.init.constant_(first.weight, 0.5)
    nn.init.constant_(last.weight, 1 / 16)
    model = export(nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), last))
    x = np.ones((1, 2, 16, 16), np.float32)
    expected = run(model, x)
    graph = tmp_path / "int8.onnx"
    onnx.save(to_int8(model, Calibration([{"x": x}], "ones", iterated=True)), graph)
    np.save(tmp_path / "x.npy", x)
    for isa in ("DEFAULT", "AVX2"):
        out = tmp_path / f"{isa}.npy"
        arguments = [str(graph), str(out), str(tmp_path / "x.npy")]
        subprocess.run(
            [sys.executable, "-c", SATURATING, *arguments],
            env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa},
            cwd=Path(__file__).parents[2],
            check=True,
        )
        np.testing.assert_allclose(np.load(out), expected, rtol=0.02)


def test_ranges_are_those_of_all_batches(fp32: onnx.ModelProto) -> None:
    large = 30 * noise(1, 2, 16, 16, seed=5)
    small = {"x": noise(1, 2, 16, 16, seed=6)}
    expected = run(fp32, large)
    errors = [
        np.abs(
            run(to_int8(fp32, Calibration(batches, "noise", iterated=False)), large) - expected
        ).max()
        for batches in ([small], [small, {"x": large}, small])
    ]
    # What was not seen is cut off.
    assert errors[1] < 0.1 * np.abs(expected).max() < 0.5 * errors[0]


def test_the_fp32_graph_is_left_as_it_was_and_the_same_bytes_come_again(
    fp32: onnx.ModelProto, tmp_path: Path
) -> None:
    before = fp32.SerializeToString(deterministic=True)
    first, second = (
        to_int8(fp32, calibration()).SerializeToString(deterministic=True) for _ in range(2)
    )
    assert fp32.SerializeToString(deterministic=True) == before
    assert first == second
    assert str(tmp_path.parent).encode() not in first


def test_inputs_outputs_and_free_axes_are_kept(fp32: onnx.ModelProto) -> None:
    converted = to_int8(fp32, calibration())
    for before, after in (
        (fp32.graph.input, converted.graph.input),
        (fp32.graph.output, converted.graph.output),
    ):
        assert [v.SerializeToString(deterministic=True) for v in before] == [
            v.SerializeToString(deterministic=True) for v in after
        ]


def test_a_network_without_anything_to_quantize() -> None:
    model = export(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 1)))
    with pytest.raises(UserError, match="no convolution that INT8 suits"):
        to_int8(model, calibration(iterated=True))


class Lookup(nn.Module):
    """A convolution between rows of two tables."""

    table: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 96, 3, padding=1)
        self.register_buffer("table", torch.rand(700, 96) + 0.5)
        self.register_buffer("scale", torch.rand(700, 2) + 0.5)
        self.head = nn.Conv2d(96, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        row = x[:, 0, 0, 0].abs().clamp(max=6).mul(100).long()
        h = self.conv(x * self.scale[row][:, :, None, None])
        h = h * self.table[row][:, :, None, None]
        result: Tensor = self.head(h)
        return result


def test_large_tables_are_stored_in_fp16() -> None:
    int8 = to_int8(export(Lookup()), calibration())
    types = {tuple(t.dims): t.data_type for t in int8.graph.initializer if t.dims[:1] == [700]}
    assert types == {(700, 96): onnx.TensorProto.FLOAT16, (700, 2): onnx.TensorProto.FLOAT}
    x = noise(3, 2, 16, 16, seed=9)
    exact = run(export(Lookup()), x)
    assert np.abs(run(int8, x) - exact).mean() < 0.02 * exact.std()


class Counting(nn.Module):
    """A network whose output depends on the run that it is in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor, run: Tensor) -> Tensor:
        h = F.silu(self.stem(x)) * (1 + run[:, None, None, None] / 20)
        result: Tensor = self.head(F.silu(self.middle(h)))
        return result


def test_the_mean_error_of_each_run_is_taken_off() -> None:
    inputs = [TensorSpec("x", "float32", FREE, ""), TensorSpec("run", "float32", ("batch",), "")]
    fp32 = to_onnx(
        Counting().eval(),
        (torch.zeros(2, 2, 8, 12), torch.zeros(2)),
        inputs,
        [TensorSpec("y", "float32", FREE, "")],
    )

    def batch(run: int, seed: int) -> dict[str, Array]:
        return {"x": noise(2, 2, 32, 32, seed=seed), "run": np.full(2, run, np.float32)}

    batches = [batch(run, run) for run in (0, 4, 8)]
    graphs = [
        to_int8(fp32, Calibration(batches, "noise", iterated=True, counter=counter))
        for counter in (None, "run")
    ]
    sessions = [onnxruntime.InferenceSession(g.SerializeToString()) for g in (fp32, *graphs)]
    bias = []
    for run in range(9):
        expected, plain, mended = (s.run(None, batch(run, 100 + run))[0] for s in sessions)
        bias.append([np.abs((y - expected).mean(axis=(0, 2, 3))).max() for y in (plain, mended)])
    before, after = np.mean(bias, axis=0)
    assert after < before / 2
    one = batch(8, 1)
    mixed = {"x": one["x"], "run": np.array([8, 3], np.float32)}
    first, second = (sessions[2].run(None, inputs)[0][0] for inputs in (one, mixed))
    np.testing.assert_array_equal(first, second)
