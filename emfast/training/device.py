"""The device that trains, said aloud."""

from __future__ import annotations

import torch

from engines.errors import UserError


def open_device(device: str, threads: int | None) -> str:
    """The device that really trains.

    Args:
        device: auto, cpu or cuda.
        threads: of the CPU; all processors by default.

    Returns:
        "cpu" or "cuda".

    Raises:
        UserError: no such device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown device {device!r}; accepted: auto, cpu, cuda")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UserError("no CUDA device that this PyTorch can use; give --device cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    if available and device != "cpu":
        print(f"device: {torch.cuda.get_device_name()}, torch {torch.__version__}")
        return "cuda"
    reason = "" if device == "cpu" else " (no CUDA device that this PyTorch can use)"
    print(f"device: CPU, {torch.get_num_threads()} threads, torch {torch.__version__}{reason}")
    return "cpu"
