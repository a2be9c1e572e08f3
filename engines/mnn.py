"""MNN on the CPU: FP32 convolutions by Winograd's algorithm."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Self

import numpy as np

from engines.bundle import TensorSpec
from engines.engine import Array, EngineInfo, EngineUnavailableError
from engines.errors import UserError
from engines.onnxruntime import cpu_count

INSTALL = "MNN is not installed: pip install 'emfast[mnn]'"
# MNN's own mnnconvert installs and imports a logging package that reports to its makers; the
# extension module underneath does not. A process of its own keeps its prints and crashes away.
CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv)"
CONVERTED = "Converted Success!"
# Interpreter::HintMode::WINOGRAD_MEMORY_LEVEL. At 3, the default, blocks are so large that the
# algorithm loses three decimal digits; at 2 results are as exact as those of direct convolutions.
WINOGRAD_MEMORY_LEVEL, LEVEL = 3, 2


def import_mnn() -> ModuleType:
    """The MNN module; :class:`EngineUnavailableError` where it is missing or does not load."""
    try:
        with _quiet():
            return import_module("MNN")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "MNN"
        reason = INSTALL if missing else f"MNN does not load ({error})"
        raise EngineUnavailableError(reason) from None


class MNNEngine:
    """A network that MNN runs in FP32 on the CPU.

    Winograd's algorithm takes 2.25 to 4 times fewer multiplications for a 3 x 3 convolution
    (Lavin and Gray, arXiv 1509.09308), so that sums are rounded otherwise than by direct
    convolutions, and in an image also otherwise in batches of other sizes.

    MNN's sigmoid gives 1 for what is not a number: a segmenter that overflows shows nothing of it
    in its outputs, as it does on other engines. An export therefore compares this engine with
    PyTorch as well.

    Args:
        graph: the ONNX file, FP32.
        inputs, outputs: the tensors of the bundle's manifest.
        threads: CPU threads; all processors of this process by default.

    Raises:
        EngineUnavailableError: MNN is missing, does not run here or cannot load the graph.
    """

    def __init__(
        self,
        graph: Path,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        threads: int | None = None,
    ) -> None:
        mnn = import_mnn()
        version = f"MNN {mnn.version()}"
        if others := [spec.name for spec in inputs if spec.dtype != "float32"]:
            raise EngineUnavailableError(f"{graph}: {others[0]} is not float32, which it needs")
        threads = threads or cpu_count()
        self._inputs, self._outputs = tuple(inputs), tuple(spec.name for spec in outputs)
        self._expr = mnn.expr
        runtime = {"backend": 0, "numThread": threads, "precision": "high"}  # 0 is the CPU
        with TemporaryDirectory(prefix="emfast-mnn-") as folder, _quiet():
            file = Path(folder) / "model.mnn"
            _convert(graph, file, version)
            manager = mnn.nn.create_runtime_manager((runtime,))
            manager.set_hint(WINOGRAD_MEMORY_LEVEL, LEVEL)
            try:
                self._network: Any = mnn.nn.load_module_from_file(
                    str(file),
                    [spec.name for spec in inputs],
                    list(self._outputs),
                    runtime_manager=manager,
                )
            except Exception as error:  # MNN raises SystemError
                reason = f"{graph}: {version} cannot load it ({' '.join(str(error).split())[:300]})"
                raise EngineUnavailableError(reason) from None
        self.info = EngineInfo("mnn", "fp32", f"CPU, {threads} threads", version)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._check(inputs)
        expr = self._expr
        # MNN copies what it is given.
        variables = [
            expr.const(
                np.ascontiguousarray(inputs[spec.name], dtype=np.float32),
                inputs[spec.name].shape,
                expr.NCHW,
                expr.float,
            )
            for spec in self._inputs
        ]
        values = self._network.forward(variables)
        if len(values) < len(self._outputs):  # an error of MNN's: it has printed why
            shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
            raise UserError(
                f"{self.info}: cannot run {shapes}, too large for the memory or of a shape that "
                "the network does not take"
            )
        arrays = [np.array(expr.convert(value, expr.NCHW).read()) for value in values]
        return dict(zip(self._outputs, arrays, strict=True))

    def _check(self, inputs: Mapping[str, Array]) -> None:
        """Refuse what MNN would run without an error: other channels, other names."""
        names = [spec.name for spec in self._inputs]
        if inputs.keys() != set(names):
            raise UserError(f"{self.info}: got {sorted(inputs)}; expected {sorted(names)}")
        for spec in self._inputs:
            shape = inputs[spec.name].shape
            fits = len(shape) == len(spec.shape) and all(
                want == has
                for want, has in zip(spec.shape, shape, strict=True)
                if isinstance(want, int)
            )
            if not fits:
                raise UserError(
                    f"{self.info}: {spec.name} has shape {shape}; expected {list(spec.shape)}"
                )

    def close(self) -> None:
        del self._network

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _convert(graph: Path, file: Path, version: str) -> None:
    """Write the graph in MNN's format."""
    command = [sys.executable, "-c", CONVERT, "-f", "ONNX", "--modelFile", str(graph)]
    command += ["--MNNModel", str(file), "--bizCode", "emfast"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if CONVERTED not in done.stdout:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reason = " ".join(lines[-2:])[:300] or f"exit status {done.returncode}"
        raise EngineUnavailableError(f"{graph}: {version} cannot convert it ({reason})")


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what MNN prints on standard output, which commands keep for results."""
    sys.stdout.flush()
    flush = ctypes.CDLL(None).fflush  # of C's own buffer
    flush(None)
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)
