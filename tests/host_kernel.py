"""The kernel of the sampling loop, compiled for the host: see host_cuda.cpp."""

from __future__ import annotations

import atexit
import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import emfast.diffusion

SOURCE = Path(emfast.diffusion.__file__).with_name("step.cu")


@lru_cache
def library() -> ctypes.CDLL:
    """Compiled once for all tests; they are skipped where there is no g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    built = Path(folder) / "step.so"
    options = ["-O2", "-ffp-contract=off", "-shared", "-fPIC", f'-DSOURCE="{SOURCE}"']
    shim = Path(__file__).with_name("host_cuda.cpp")
    subprocess.run([compiler, *options, str(shim), "-o", str(built)], check=True)
    return ctypes.CDLL(str(built))


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x64-10 as the kernel computes it."""
    words = (ctypes.c_uint64 * 4)(*counter)
    library().host_philox(words, *(ctypes.c_uint64(k) for k in key))
    return list(words)


def sampling_step(
    grid_x: int, grid_y: int, pointers: Sequence[int], numbers: Sequence[int]
) -> None:
    """Run the kernel with its nine addresses and three numbers."""
    values = [*map(ctypes.c_void_p, pointers), *map(ctypes.c_uint32, numbers)]
    arguments = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    library().host_sampling_step(grid_x, grid_y, arguments)


def address(array: npt.NDArray[np.generic]) -> int:
    """Of an array's first element."""
    return int(array.ctypes.data)
