from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engines.diagnosis import Machine, Problem, conflicts, provider_reason
from engines.probe import Gpus, Module, Provider
from tests.environments import FAKES

CPU = Module("onnxruntime", {"onnxruntime": "1.32.0"}, "1.32.0", facts={"cuda": None})
GPU = Module("onnxruntime", {"onnxruntime-gpu": "1.31.1"}, "1.31.1", facts={"cuda": "13.0"})
NO_TENSORRT = Module("tensorrt", {}, reason="not installed")
TENSORRT_11 = Module("tensorrt", {"tensorrt": "11.4.0.106"}, "11.4.0.106")
NO_GPU = Gpus(reason="no NVIDIA driver on this machine")
L4 = {"index": 0, "name": "NVIDIA L4", "driver": "580.65.06", "cuda": "13.0"}
WITHOUT_TENSORRT = "; emfast goes without it, its engine tensorrt calls TensorRT itself"
# As people quote them in issues of onnxruntime.
CUDA_CALL = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:114 std::conditional_t<THRW, "
    "void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, "
    "SUCCTYPE, const char*, const char*, int) [with ERRTYPE = cudaError; bool THRW = true] CUDA "
    "failure {}: {} ; GPU=-1 ; hostname=c4327188c000000 ; expr=cudaSetDevice(info_.device_id); "
)
TOO_OLD = CUDA_CALL.format(35, "CUDA driver version is insufficient for CUDA runtime version")
NO_KERNEL = CUDA_CALL.format(209, "no kernel image is available for execution on the device")


def recorded(name: str) -> str:
    """What onnxruntime-gpu 1.31.1 printed."""
    return (FAKES / f"recorded/{name}.txt").read_text()


def machine(**facts: Any) -> Machine:
    usual = {"gpus": Gpus((L4,)), "onnxruntime": GPU, "tensorrt": NO_TENSORRT}
    return Machine(**{**usual, **facts})


def cuda(error: str) -> Provider:
    return Provider("CUDAExecutionProvider", error)


def load_error(library: str) -> str:
    return recorded("cuda-without-libraries").replace("libcublasLt.so.13", library)


@pytest.mark.parametrize(
    ("error", "facts", "reason"),
    [
        (
            recorded("cuda-without-libraries"),
            {},
            "needs CUDA 13.0 (libcublasLt.so.13), which is not installed",
        ),
        (
            recorded("cuda-without-libraries"),
            {"cuda_packages": {"nvidia-cublas-cu12": "12.8.4.1", "nvidia-cudnn-cu12": "9.10.2.21"}},
            "needs CUDA 13.0 (libcublasLt.so.13), but only the libraries of CUDA 12 "
            "(nvidia-cublas-cu12 12.8.4.1) are installed",
        ),
        (
            recorded("cuda-without-libraries"),
            {"cuda_packages": {"nvidia-cublas": "13.0.2.14"}},
            "needs CUDA 13.0 (libcublasLt.so.13), which is not installed",
        ),
        (
            recorded("cuda-without-driver"),
            {},
            "needs the NVIDIA driver (libcuda.so.1 is not found)",
        ),
        (
            load_error("libcudnn.so.9"),
            {},
            "needs cuDNN 9 (libcudnn.so.9), which is not installed",
        ),
        (load_error("libother.so.1"), {}, "needs libother.so.1, which is not found"),
        (
            recorded("cuda-without-libraries").replace(
                "libcublasLt.so.13: cannot open shared object file: No such file or directory",
                "/usr/lib/libm.so.6: version `GLIBC_2.38' not found",
            ),
            {},
            "its library does not load (/usr/lib/libm.so.6: version `GLIBC_2.38' not found)",
        ),
        (
            TOO_OLD,
            {"gpus": Gpus(({**L4, "cuda": "12.4"},))},
            "the driver takes CUDA up to 12.4, but this onnxruntime needs CUDA 13.0",
        ),
        (TOO_OLD, {"gpus": NO_GPU}, "finds no GPU: no NVIDIA driver on this machine"),
        (
            NO_KERNEL,
            {},
            "CUDA fails with error 209, no kernel image is available for execution on the device",
        ),
        ("fatal\ncrashed (SIGABRT)", {}, "crashed (SIGABRT)"),
        (
            "[E:onnxruntime:, x.cc:1]\n[ONNXRuntimeError] : 1 : FAIL : bad luck\n",
            {},
            "bad luck",
        ),
        (
            "graph nodes that are assigned to the default CPU EP, but fallback to CPU EP has been "
            "explicitly disabled by the user.",
            {},
            "takes no part of the network, so that all of it would run on the CPU",
        ),
    ],
)
def test_reasons_of_the_cuda_provider(error: str, facts: dict[str, Any], reason: str) -> None:
    assert provider_reason(cuda(error), machine(**facts)) == reason


@pytest.mark.parametrize(
    ("tensorrt", "reason"),
    [
        (
            TENSORRT_11,
            "needs TensorRT 10 (libnvinfer.so.10), but TensorRT 11.4.0.106 is installed",
        ),
        (NO_TENSORRT, "needs TensorRT 10 (libnvinfer.so.10), which is not installed"),
    ],
)
def test_the_tensorrt_provider_that_looks_for_tensorrt_10(tensorrt: Module, reason: str) -> None:
    provider = Provider("TensorrtExecutionProvider", recorded("tensorrt-without-tensorrt"))
    here = machine(tensorrt=tensorrt, providers=[provider])
    assert provider_reason(provider, here) == reason + WITHOUT_TENSORRT
    assert conflicts(here) == []  # nothing to mend: emfast goes without it


def test_the_azure_provider_runs_no_network() -> None:
    error = "but fallback to CPU EP has been explicitly disabled by the user."
    provider = Provider("AzureExecutionProvider", error)
    reason = provider_reason(provider, machine(onnxruntime=CPU))
    assert reason == "computes nothing here; it calls remote services"


def only(problems: list[Problem]) -> Problem:
    (problem,) = problems
    return problem


def test_a_healthy_machine_has_no_conflict() -> None:
    fine = [Provider("CUDAExecutionProvider", None), Provider("CPUExecutionProvider", None)]
    assert conflicts(machine(providers=fine, tensorrt=TENSORRT_11)) == []
    assert conflicts(machine(gpus=NO_GPU, onnxruntime=CPU)) == []


@pytest.mark.parametrize(
    ("gpus", "install"),
    [
        (Gpus((L4,)), "pip install 'onnxruntime-gpu[cuda,cudnn]'"),
        (NO_GPU, "pip install onnxruntime"),
    ],
)
def test_both_onnxruntime_packages(gpus: Gpus, install: str) -> None:
    both = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    module = Module("onnxruntime", both, "1.31.1", facts={"cuda": "13.0"})
    problem = only(conflicts(machine(gpus=gpus, onnxruntime=module)))
    assert problem.what == "onnxruntime and onnxruntime-gpu side by side"
    assert "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 write" in problem.why
    assert problem.commands == ("pip uninstall -y onnxruntime onnxruntime-gpu", install)


def test_what_is_left_after_one_of_both_was_removed() -> None:
    reason = "its folder is there, but its files are not"
    module = Module("onnxruntime", {"onnxruntime-gpu": "1.31.1"}, reason=reason)
    problem = only(conflicts(machine(onnxruntime=module)))
    assert problem.what == "onnxruntime is installed but does not load"
    assert reason in problem.why
    assert problem.commands == (
        "pip uninstall -y onnxruntime-gpu",
        "pip install 'onnxruntime-gpu[cuda,cudnn]'",
    )


@pytest.mark.parametrize(("gpus", "extra"), [(Gpus((L4,)), "gpu"), (NO_GPU, "cpu")])
def test_no_onnxruntime(gpus: Gpus, extra: str) -> None:
    absent = Module("onnxruntime", {}, reason="not installed")
    problem = only(conflicts(machine(gpus=gpus, onnxruntime=absent)))
    assert problem.commands == (f"pip install 'emfast[{extra}]'",)


@pytest.mark.parametrize("name", ["MNN", "openvino"])
def test_no_onnxruntime_where_another_engine_runs(name: str) -> None:
    absent = Module("onnxruntime", {}, reason="not installed")
    others = (Module(name, {name.lower(): "3"}, "3"),)
    on_cpu = replace(machine(gpus=NO_GPU, onnxruntime=absent), others=others)
    assert list(conflicts(on_cpu)) == []
    # A GPU's engines are compared with onnxruntime before they are used.
    on_gpu = replace(on_cpu, gpus=Gpus((L4,)))
    assert only(conflicts(on_gpu)).commands == ("pip install 'emfast[gpu]'",)


@pytest.mark.parametrize("gpus", [Gpus((L4,)), NO_GPU])
def test_cuda_12_libraries_under_a_cuda_13_build(gpus: Gpus) -> None:
    here = machine(
        gpus=gpus,
        providers=[cuda(recorded("cuda-without-libraries"))],
        cuda_packages={"nvidia-cublas-cu12": "12.8.4.1"},
    )
    problem = only(conflicts(here))
    assert problem.what == "CUDA 12 libraries under a CUDA 13 build of onnxruntime"
    assert "only the libraries of CUDA 12 (nvidia-cublas-cu12 12.8.4.1)" in problem.why
    assert problem.commands == ("pip install 'onnxruntime-gpu[cuda,cudnn]==1.31.1'",)


def test_cuda_libraries_of_the_system_count_too() -> None:
    module = Module(
        "onnxruntime",
        GPU.packages,
        GPU.version,
        facts={"cuda": "13.0", "loadable_cuda": [12]},
    )
    here = machine(onnxruntime=module, providers=[cuda(recorded("cuda-without-libraries"))])
    assert "CUDA 12 (the system)" in only(conflicts(here)).why


def test_missing_cuda_libraries_matter_where_there_is_a_gpu() -> None:
    providers = [cuda(recorded("cuda-without-libraries"))]
    problem = only(conflicts(machine(providers=providers)))
    assert problem.what == "onnxruntime-gpu without its CUDA libraries"
    assert conflicts(machine(gpus=NO_GPU, providers=providers)) == []


def test_a_driver_that_is_too_old() -> None:
    old = {**L4, "driver": "550.54.14", "cuda": "12.4"}
    problem = only(conflicts(machine(gpus=Gpus((old,)), providers=[cuda(TOO_OLD)])))
    assert problem.what == "the NVIDIA driver is too old for CUDA 13.0"
    assert "Driver 550.54.14 takes CUDA up to 12.4" in problem.why
    assert problem.commands == ()


def test_tensorrt_bindings_without_their_libraries() -> None:
    module = Module(
        "tensorrt",
        {"tensorrt-cu13-bindings": "11.4.0.106", "tensorrt-cu13-libs": "10.16.1.11"},
        reason="libnvinfer.so.11: cannot open shared object file: No such file or directory",
    )
    problem = only(conflicts(machine(tensorrt=module)))
    assert problem.what == "TensorRT is installed but does not load"
    assert "tensorrt-cu13-libs 10.16.1.11: libnvinfer.so.11: cannot open" in problem.why
    assert problem.commands == (
        "pip uninstall -y tensorrt-cu13-bindings tensorrt-cu13-libs",
        "pip install tensorrt",
    )


def test_ambiguous_numbers_of_gpus() -> None:
    gpus = Gpus((L4,), doubt="GPUs of different models (A, B); set CUDA_DEVICE_ORDER=PCI_BUS_ID")
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in only(conflicts(machine(gpus=gpus))).why
