from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest
import torch

from emfast.training.device import autocast, computed_in, computes_bf16, memory_format, open_device

AVX2 = {"architecture": "x86_64", "avx2": True, "avx512_f": False, "avx512_bf16": False}
FAULTS = """
import json, resource, torch
from emfast.training.device import open_device
torch.set_num_threads(1)
def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
before = faults()
open_device("cpu", 1)
faults()
# Something small in between may take the freed place once; the next block is then a new one.
print(json.dumps([before, min(faults() for _ in range(3))]))
"""


def has(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**AVX2, **capabilities})


@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_bf16", "bf16"])
def test_bfloat16_where_the_processor_computes_it(
    instructions: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has(monkeypatch, **{instructions: True})
    assert computes_bf16("cpu")
    assert computed_in("cpu", "bf16") is torch.bfloat16
    assert computed_in("cpu", "fp32") is torch.float32
    assert memory_format("cpu", "bf16") is torch.channels_last
    assert memory_format("cpu", "fp32") is torch.contiguous_format
    assert open_device("cpu", None) == "cpu"
    assert "float32" not in capsys.readouterr().out
    with autocast("cpu", "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16


def test_float32_elsewhere_said_aloud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has(monkeypatch)
    assert computed_in("cpu", "bf16") is torch.float32
    assert memory_format("cpu", "bf16") is torch.contiguous_format
    assert open_device("cpu", None) == "cpu"
    assert "in float32: it has no bfloat16 instructions" in capsys.readouterr().out
    with autocast("cpu", "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc's settings are glibc's")
def test_freed_memory_is_used_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True, timeout=120
    )
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert before > 100
    assert after < before / 10
