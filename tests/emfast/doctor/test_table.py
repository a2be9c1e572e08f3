from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from emfast.doctor.facts import BundleFacts, CacheFacts, Choice, Facts, ProviderFacts
from emfast.doctor.report import report, self_test_table, to_json
from emfast.doctor.self_test import SelfTest, Trial
from emfast.doctor.table import facts_table, home
from engines.diagnosis import Problem
from engines.probe import Gpus, Module

H100 = {
    "index": 0,
    "name": "NVIDIA H100",
    "uuid": "GPU-1",
    "compute_capability": "9.0",
    "memory": 85_500_000_000,
    "free": 80_000_000_000,
    "driver": "580.65.06",
    "cuda": "13.0",
}
TENSORRT = {
    "engine": "tensorrt",
    "precision": "fp16",
    "device": "NVIDIA H100 (CUDA device 0)",
    "version": "TensorRT 11.4.0.106",
}
RAN = {
    "open_seconds": 12.345,
    "run_seconds": 0.0042,
    "run_of": "4 of 256 x 256 pixels",
    "summary": {"maximum error": 0.02413, "mean error": 0.00287, "PSNR of the image": 62.36},
}
RTX = ["7.5", "8.6", "8.9", "12.0"]


def facts(**others: Any) -> Facts:
    parts = {"tensorrt-rtx-cu13": "1.7.1", "tensorrt-rtx-cu13-libs": "1.7.1"}
    usual: dict[str, Any] = {
        "emfast": "0.1.0",
        "python": "3.12.1",
        "platform": "Linux 6.8, x86_64",
        "gpus": Gpus((H100,)),
        "modules": (
            Module("onnxruntime", {"onnxruntime-gpu": "1.31.1"}, "1.31.1", None, {"cuda": "13.0"}),
            Module("tensorrt_rtx", parts, "1.7.1", None, {"compute_capabilities": RTX}),
            Module("tensorrt", {"tensorrt": "11.4.0.106"}, reason="libx.so.1: cannot open"),
        ),
        "providers": (ProviderFacts("CUDAExecutionProvider", False, "needs CUDA 13.0"),),
        "bundles": (
            BundleFacts("a", "denoiser", ("fp32", "fp16"), {"manifest.json": "9" * 64}, None),
            BundleFacts("b", None, (), {}, f"{Path.home()}/b/model.onnx: was altered"),
        ),
        "choices": (Choice("a", TENSORRT, (), None), Choice("b", None, (), "b is damaged")),
        "cache": CacheFacts(f"{Path.home()}/.cache/emfast", 2, 42_000_000, None),
        "problems": (Problem("the GPU stands idle", "Nothing uses it.", ("pip install x",)),),
    }
    return Facts(**{**usual, **others})


def text(renderable: RenderableType, width: int = 110) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def lines(found: Facts) -> list[str]:
    return [" ".join(line.split()) for line in text(facts_table(found), 300).splitlines()]


def test_rows() -> None:
    found = lines(facts())
    for line in (
        "GPU 0 ok NVIDIA H100, compute capability 9.0, 85.5 GB, 80.0 GB free, driver 580.65.06, "
        "CUDA up to 13.0",
        "onnxruntime ok onnxruntime-gpu 1.31.1, built for CUDA 13.0",
        "TensorRT-RTX no tensorrt-rtx-cu13 1.7.1, made for compute capability 7.5, 8.6, 8.9, 12.0, "
        "not for NVIDIA H100 (9.0)",
        "TensorRT problem tensorrt 11.4.0.106: libx.so.1: cannot open",
        "CUDAExecutionProvider no needs CUDA 13.0",
        "a ok denoiser, fp32 and fp16; 1 files match SHA-256 999999999999...",
        "b problem ~/b/model.onnx: was altered",
        "tensorrt taken for a: TensorRT 11.4.0.106, fp16, NVIDIA H100 (CUDA device 0)",
        "none problem nothing runs b: b is damaged",
        "folder ok ~/.cache/emfast, 2 engines, 42.0 MB",
        "1 problem the GPU stands idle. Nothing uses it.",
        "pip install x",
    ):
        assert line in found


def test_bundles_that_fare_alike_share_their_rows() -> None:
    passed_over = ("tensorrt passed over: no driver",)
    cpu = {**TENSORRT, "engine": "onnxruntime-cpu"}
    alike = (Choice("a", cpu, passed_over, None), Choice("b", cpu, passed_over, None))
    found = lines(facts(choices=alike))
    assert found.count("tensorrt no no driver") == 1
    assert any(line.startswith("onnxruntime-cpu taken for a and b: ") for line in found)
    apart = (alike[0], Choice("b", cpu, ("tensorrt passed over: too large",), None))
    found = lines(facts(choices=apart))
    assert "tensorrt no no driver (a)" in found and "tensorrt no too large (b)" in found


def test_machines_without_a_gpu_are_not_told_to_install_for_one() -> None:
    module = Module("tensorrt", {}, reason="not installed")
    found = lines(facts(gpus=Gpus(reason="no NVIDIA driver"), modules=(module, *facts().modules)))
    assert "GPU none no NVIDIA driver" in found
    assert "TensorRT no not installed; only a GPU needs it (part of emfast[gpu])" in found


def test_narrow_terminals_fold_and_lose_nothing() -> None:
    wide, narrow = (text(facts_table(facts()), width).split() for width in (300, 60))
    assert sorted("".join(wide)) == sorted("".join(narrow))


def trials() -> SelfTest:
    return SelfTest(
        (
            Trial("tensorrt", "a", "fp16", "passed", None, RAN),
            Trial("tensorrt", "b", "fp16", "failed", "mean error 0.7 (at most 0.02)", RAN),
            Trial("onnxruntime-cuda", None, None, "unavailable", "no driver"),
        )
    )


def test_numbers_of_the_self_test() -> None:
    found = [" ".join(line.split()) for line in text(self_test_table(trials()), 200).splitlines()]
    assert "tensorrt a fp16 passed 12.35 s 4.2 ms 0.024 0.0029 62.4 dB" in found
    assert "tensorrt b fp16 failed mean error 0.7 (at most 0.02)" in found
    assert "onnxruntime-cuda no no driver" in found
    assert found[-1].startswith("Verdict: self-test FAILED: 1 passed, 1 failed; cannot run here:")


def test_lines_for_a_bug_report() -> None:
    found = report(facts(), trials()).splitlines()
    assert found[0] == "emfast 0.1.0, Python 3.12.1, Linux 6.8, x86_64"
    assert "problem: the GPU stands idle" in found
    assert "auto, a: tensorrt (TensorRT 11.4.0.106), fp16, NVIDIA H100 (CUDA device 0)" in found
    assert (
        "tensorrt b fp16: failed, mean error 0.7 (at most 0.02), opened in 12.35 s, 4 of 256 x 256 "
        "pixels in 4.2 ms, maximum error 0.024, mean error 0.0029, PSNR of the image 62.4 dB"
        in found
    )
    assert found[-1] == trials().verdict
    assert str(Path.home()) not in "\n".join(found)


def test_json_holds_the_same() -> None:
    values = json.loads(to_json(facts(), trials()))
    assert values["gpus"]["gpus"] == [H100]
    assert values["runs"] is True and values["verdict"] == facts().verdict
    assert [trial["state"] for trial in values["self_test"]["trials"]] == [
        "passed",
        "failed",
        "unavailable",
    ]
    assert json.loads(to_json(facts(), None))["self_test"] is None


def test_home_is_shortened_where_it_is_a_folder(monkeypatch: Any) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/lab"))
    assert home("/home/lab/x and /home/laboratory/y") == "~/x and /home/laboratory/y"
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    assert home("/x/y") == "/x/y"
