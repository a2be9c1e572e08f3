"""onnxruntime-gpu 1.31.1 on a machine without its CUDA libraries.

The CPU provider is that of the onnxruntime which is installed. The CUDA and TensorRT providers fail
with what onnxruntime-gpu 1.31.1 printed on a machine without CUDA libraries and without a driver;
ORT_CUDA_ERROR and ORT_TENSORRT_ERROR name other recorded files.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

FAKE = Path(__file__).parents[1]
RECORDED = FAKE.parent / "recorded"
ERRORS = {
    "CUDAExecutionProvider": os.environ.get("ORT_CUDA_ERROR", "cuda-without-libraries"),
    "TensorrtExecutionProvider": os.environ.get("ORT_TENSORRT_ERROR", "tensorrt-without-cuda"),
}

_path = list(sys.path)
sys.path = [folder for folder in sys.path if Path(folder) != FAKE]
_fake = sys.modules.pop("onnxruntime")
import onnxruntime as _real  # noqa: E402

sys.modules["onnxruntime"] = _fake
sys.path = _path

__version__ = "1.31.1"
cuda_version = os.environ.get("ORT_CUDA_VERSION", "13.0")


class SessionOptions(_real.SessionOptions):  # type: ignore[misc]
    """The real ones, which also remember whether the CPU may stand in."""

    cpu_may_stand_in = True

    def add_session_config_entry(self, key: str, value: str) -> None:
        """As of onnxruntime."""
        if key == "session.disable_cpu_ep_fallback":
            self.cpu_may_stand_in = value != "1"
            return
        super().add_session_config_entry(key, value)


class InferenceSession:
    """Runs on the CPU or not at all."""

    def __init__(
        self, model: Any, options: SessionOptions, providers: list[Any], **others: Any
    ) -> None:
        provider = providers[0] if isinstance(providers[0], str) else providers[0][0]
        if provider in ERRORS:
            log, _, error = (RECORDED / f"{ERRORS[provider]}.txt").read_text().partition("\n--\n")
            os.write(2, f"{log}\n".encode())
            if not options.cpu_may_stand_in:
                raise RuntimeError(error.strip())
        cpu = ["CPUExecutionProvider"]
        self._session = _real.InferenceSession(model, options, providers=cpu)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def get_available_providers() -> list[str]:
    """As of onnxruntime-gpu."""
    return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def preload_dlls() -> None:
    """As of onnxruntime-gpu, where there is nothing to load."""
    print("Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file")
