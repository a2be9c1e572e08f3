"""What a benchmark ran on: hardware, versions, and how fast it multiplies matrices."""

from __future__ import annotations

import platform
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from engines.gpu import NoGpuError, gpus
from engines.onnxruntime import cpu_count

PACKAGES = (
    "emfast",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "mnn",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "torch",
    "diffusers",
    "monai",
)
MATRIX = 2048
REPEATS = 5


def machine_facts() -> dict[str, Any]:
    """Hardware and versions, JSON-ready."""
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "processors": cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions,
    }
    with suppress(NoGpuError):
        facts["gpus"] = [f"{gpu.name}, driver {gpu.driver}" for gpu in gpus()]
    return facts


def matmul_rate() -> float:
    """Floating-point operations a second of a float32 matrix product, the best of a few.

    numpy's BLAS takes the threads that it was built for; on a machine with other load the rate is
    what is left.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((MATRIX, MATRIX), dtype=np.float32) for _ in range(2))
    out = a @ b
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        np.matmul(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2.0 * MATRIX**3 / best


def convolution_flops(graph: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """Floating-point operations of a graph's convolutions and matrix products, from their shapes.

    Args:
        graph: an ONNX file.
        shapes: of the inputs.
    """
    import onnx
    from onnx import shape_inference

    model = onnx.load(graph)
    for value in model.graph.input:
        for axis, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            axis.dim_value = size
    model = shape_inference.infer_shapes(model, data_prop=True)
    graph_values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    known = {value.name: value for value in graph_values}
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        kernel = weights[node.input[1]]
        # A convolution multiplies for every pixel that it gives, a transposed one for every pixel
        # that it takes.
        at = node.output[0] if node.op_type == "Conv" else node.input[0]
        batch, _, *sides = (d.dim_value for d in known[at].type.tensor_type.shape.dim)
        total += 2 * int(np.prod(kernel)) * batch * int(np.prod(sides))
    return total


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
