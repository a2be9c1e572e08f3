"""A PyTorch module as an engine, to compare the others with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import nn

from engines.engine import Array, EngineInfo


class TorchEngine:
    """Runs a module in eager mode, FP32, channels-last.

    Args:
        module: in evaluation mode; takes the inputs in the order of ``inputs`` and returns one
            tensor, or a tuple in the order of ``outputs``.
        inputs, outputs: names, as in the bundle that was exported from the module.
        device: "cpu" or "cuda".
    """

    def __init__(
        self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], device: str = "cpu"
    ) -> None:
        self._device = torch.device(device)
        self._module = module.eval().to(self._device)
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        place = f"CPU, {torch.get_num_threads()} threads" if device == "cpu" else "CUDA device 0"
        self.info = EngineInfo("torch", "fp32", place, f"torch {torch.__version__}")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        tensors = [torch.from_numpy(inputs[name]).to(self._device) for name in self._inputs]
        tensors = [
            t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors
        ]
        with torch.inference_mode():
            result = self._module(*tensors)
        results = result if isinstance(result, tuple) else (result,)
        arrays = (r.contiguous().cpu().numpy() for r in results)
        return dict(zip(self._outputs, arrays, strict=True))

    def close(self) -> None:
        del self._module

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
