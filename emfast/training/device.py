"""The device that trains and the type that it computes in, said aloud."""

from __future__ import annotations

import ctypes
from typing import Literal

import torch

from engines.errors import UserError

# In the words of torch.cpu.get_capabilities, for x86 and ARM.
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")
# Of glibc's malloc.h: largest number of blocks that are mapped each on its own, and free memory at
# the heap's end that is kept.
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1


def computes_bf16(device_type: str) -> bool:
    """Whether a device multiplies bfloat16 itself.

    PyTorch emulates it elsewhere: a training step with AVX2 takes 12 times as long as in float32.

    Args:
        device_type: "cpu" or "cuda".
    """
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in BF16_INSTRUCTIONS)


def computed_in(device_type: str, precision: Literal["bf16", "fp32"]) -> torch.dtype:
    """What convolutions are computed in.

    Args:
        device_type: "cpu" or "cuda".
        precision: that the settings ask for.

    Returns:
        torch.bfloat16 or torch.float32.
    """
    bf16 = precision == "bf16" and computes_bf16(device_type)
    return torch.bfloat16 if bf16 else torch.float32


def autocast(device_type: str, precision: Literal["bf16", "fp32"]) -> torch.autocast:
    """The context in which a network is trained and drawn with; see :func:`computed_in`."""
    dtype = computed_in(device_type, precision)
    return torch.autocast(device_type, torch.bfloat16, enabled=dtype is torch.bfloat16)


def memory_format(device_type: str, precision: Literal["bf16", "fp32"]) -> torch.memory_format:
    """The order of the values of images and weights in which a network trains fastest.

    Channels last, except in float32 on a CPU: there the segmenter's step is 1.3 times as fast with
    whole planes.
    """
    planes = device_type == "cpu" and computed_in(device_type, precision) is torch.float32
    return torch.contiguous_format if planes else torch.channels_last


def _keep_freed_memory() -> None:
    """Let malloc give freed blocks out again, which glibc does not with large ones.

    It returns them to the system and gets them back as new pages, each zeroed at the first touch:
    a third of the segmenter's step. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


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
        name = torch.cuda.get_device_name()
        print(f"device: {name}, torch {torch.__version__}{_computed_in_float32('cuda')}")
        return "cuda"
    _keep_freed_memory()
    reason = "" if device == "cpu" else "; no CUDA device that this PyTorch can use"
    computed = _computed_in_float32("cpu")
    threads = torch.get_num_threads()
    print(f"device: CPU, {threads} threads, torch {torch.__version__}{computed}{reason}")
    return "cpu"


def _computed_in_float32(device_type: str) -> str:
    return "" if computes_bf16(device_type) else ", in float32: it has no bfloat16 instructions"
