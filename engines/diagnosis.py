"""What the facts of :mod:`engines.probe` mean: plain reasons, known conflicts, remedies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engines.probe import Gpus, Module, Provider

# Patterns of package names, for engines.probe.packages.
ONNXRUNTIME = r"onnxruntime(-(gpu|directml|openvino|rocm|migraphx|qnn|training|trt-rtx))?|ort-.+"
TENSORRT = r"tensorrt(-cu\d+)?(-bindings|-libs|-lean|-dispatch)?"
MNN, OPENVINO = "mnn", "openvino"
TENSORRT_RTX = r"tensorrt-rtx(-cu\d+)?(-bindings|-libs)?"
CUDA_LIBRARIES = r"nvidia-(cublas|cuda-runtime|cudnn)(-cu\d+)?"

CUDA_NAMES = r"lib(cublas|cublasLt|cudart|cufft|curand|nvrtc|nvJitLink|cusparse|cusolver)\.so"
LOAD = re.compile(r"Failed to load library \S*?(lib\w+\.so) with error: ([^\n]+)")
MISSING = re.compile(r"(lib[\w+-]+\.so[.\d]*): cannot open shared object file")
CUDA_FAILURE = re.compile(r"CUDA failure (\d+): ([^;\n]+)")
NO_CPU_FALLBACK = "fallback to CPU EP has been explicitly disabled"
# "/onnxruntime_src/onnxruntime/core/x.cc:12 std::x y::z(int) [ONNXRuntimeError] : 1 : FAIL : "
PREFIX = re.compile(r"^.*\[ONNXRuntimeError\] : \d+ : \w+ : ")
REASON_LENGTH = 240

GPU_PACKAGE = "onnxruntime-gpu[cuda,cudnn]"


@dataclass(frozen=True)
class Problem:
    """Something to mend.

    Attributes:
        what: in a few words.
        why: what it leads to, in a sentence or two.
        commands: that mend it, in their order.
    """

    what: str
    why: str
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Machine:
    """All that a diagnosis looks at.

    Attributes:
        gpus: of this process.
        onnxruntime, tensorrt: as they import.
        providers: of onnxruntime.
        cuda_packages: of NVIDIA's CUDA and cuDNN libraries, version by name.
        others: MNN and OpenVINO, as they import.
    """

    gpus: Gpus
    onnxruntime: Module
    tensorrt: Module
    providers: Sequence[Provider] = ()
    cuda_packages: dict[str, str] | None = None
    others: Sequence[Module] = ()

    @property
    def cuda_build(self) -> str | None:
        """The CUDA version that onnxruntime is built for."""
        value: Any = self.onnxruntime.facts.get("cuda")
        return None if value is None else str(value)

    @property
    def cuda_majors(self) -> dict[int, str]:
        """Major versions of the CUDA libraries that are here, and what brings each."""
        found = dict.fromkeys(self.onnxruntime.facts.get("loadable_cuda", ()), "the system")
        for name, version in (self.cuda_packages or {}).items():
            suffix = re.search(r"-cu(\d+)$", name)
            if "cudnn" not in name:
                major = int(suffix[1]) if suffix else int(version.split(".")[0])
                found[major] = f"{name} {version}"
        return found


def provider_reason(provider: Provider, machine: Machine) -> str:
    """Why a provider did not run, in one line."""
    reason = _provider_reason(provider, machine)
    if provider.name == "TensorrtExecutionProvider":
        return f"{reason}; emfast goes without it, its engine tensorrt calls TensorRT itself"
    return reason


def _provider_reason(provider: Provider, machine: Machine) -> str:
    text = provider.error or ""
    load = LOAD.search(text)
    if load:
        return _load_reason(load[2], machine)
    failure = CUDA_FAILURE.search(text)
    if failure:
        return _cuda_reason(int(failure[1]), failure[2].strip(), machine)
    if NO_CPU_FALLBACK in text:
        if provider.name == "AzureExecutionProvider":
            return "computes nothing here; it calls remote services"
        return "takes no part of the network, so that all of it would run on the CPU"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return PREFIX.sub("", lines[-1])[:REASON_LENGTH] if lines else "no reason was given"


def _load_reason(error: str, machine: Machine) -> str:
    missing = MISSING.search(error)
    if missing is None:
        return f"its library does not load ({error.strip()[:REASON_LENGTH]})"
    library = missing[1]
    if library.startswith("libcuda."):
        return f"needs the NVIDIA driver ({library} is not found)"
    wanted = re.match(r"libnv(?:infer|onnxparser)\w*\.so\.(\d+)", library)
    if wanted:
        has = machine.tensorrt.version or next(iter(machine.tensorrt.packages.values()), None)
        other = f"but TensorRT {has} is installed" if has else "which is not installed"
        return f"needs TensorRT {wanted[1]} ({library}), {other}"
    if library.startswith("libcudnn"):
        major = re.search(r"\.so\.(\d+)", library)
        return f"needs cuDNN {major[1] if major else ''} ({library}), which is not installed"
    if re.match(CUDA_NAMES, library):
        return _missing_cuda(library, machine)
    return f"needs {library}, which is not found"


def _missing_cuda(library: str, machine: Machine) -> str:
    needs = f"needs CUDA {machine.cuda_build} ({library})" if machine.cuda_build else None
    needs = needs or f"needs CUDA's {library}"
    other = _other_cuda(machine)
    return f"{needs}, but {other}" if other else f"{needs}, which is not installed"


def _other_cuda(machine: Machine) -> str | None:
    """The CUDA libraries that are here where none is of onnxruntime's CUDA version."""
    majors = machine.cuda_majors
    if machine.cuda_build is None or not majors or _major(machine.cuda_build) in majors:
        return None
    names = ", ".join(f"CUDA {major} ({by})" for major, by in sorted(majors.items()))
    return f"only the libraries of {names} are installed"


def _cuda_reason(code: int, text: str, machine: Machine) -> str:
    if machine.gpus.reason is not None:
        return f"finds no GPU: {machine.gpus.reason}"
    if code == 35:  # cudaErrorInsufficientDriver
        takes = machine.gpus.gpus[0]["cuda"]
        needs = machine.cuda_build or "a newer one"
        return f"the driver takes CUDA up to {takes}, but this onnxruntime needs CUDA {needs}"
    return f"CUDA fails with error {code}, {text}"


def conflicts(machine: Machine) -> list[Problem]:
    """The conflicts among packages, libraries and driver that are known to trip people."""
    problems = [*_packages_problem(machine), *_cuda_problem(machine), *_tensorrt_problem(machine)]
    if machine.gpus.doubt is not None:
        problems.append(Problem("numbers of GPUs are ambiguous", f"{machine.gpus.doubt}."))
    return problems


def _packages_problem(machine: Machine) -> list[Problem]:
    """No onnxruntime, several in one folder, or one whose files are not as they were installed."""
    module, names = machine.onnxruntime, list(machine.onnxruntime.packages)
    if not names and module.reason == "not installed":
        if not machine.gpus.gpus and any(other.version for other in machine.others):
            return []  # they run networks without it
        extra = "gpu" if machine.gpus.gpus else "cpu"
        return [
            Problem(
                "no onnxruntime is installed",
                "It runs networks, and every TensorRT engine is compared with it before use. Take "
                "one extra, never both: cpu, or gpu for an NVIDIA GPU.",
                (f"pip install 'emfast[{extra}]'",),
            )
        ]
    for_gpu = "onnxruntime-gpu" in names and (machine.gpus.gpus or "onnxruntime" not in names)
    wanted = f"'{GPU_PACKAGE}'" if for_gpu else "onnxruntime"
    anew = (f"pip uninstall -y {' '.join(names)}", f"pip install {wanted}")
    if len(names) > 1:
        both = " and ".join(f"{name} {version}" for name, version in module.packages.items())
        return [
            Problem(
                f"{' and '.join(names)} side by side",
                f"{both} write their files into the same folder; what runs is a mixture, "
                "often without CUDA. Remove all of them before you install one: removing one "
                "alone takes files away from the other.",
                anew,
            )
        ]
    if module.version is not None:
        return []
    return [
        Problem(
            "onnxruntime is installed but does not load",
            f"Its import fails: {module.reason}. Install it anew.",
            anew if names else (f"pip install --force-reinstall {wanted}",),
        )
    ]


def _cuda_problem(machine: Machine) -> list[Problem]:
    """CUDA libraries, or a driver, of another version than onnxruntime's CUDA provider needs."""
    failed = {p.name: p for p in machine.providers if p.error is not None}
    provider = failed.get("CUDAExecutionProvider")
    if provider is None or machine.cuda_build is None:
        return []
    build, gpus = machine.cuda_build, machine.gpus.gpus
    if gpus and _major(gpus[0]["cuda"]) < _major(build):
        return [
            Problem(
                f"the NVIDIA driver is too old for CUDA {build}",
                f"Driver {gpus[0]['driver']} takes CUDA up to {gpus[0]['cuda']}; "
                f"onnxruntime-gpu {machine.onnxruntime.version} is built for CUDA {build}. "
                f"Install a driver with which nvidia-smi shows CUDA {_major(build)}.0 or newer.",
            )
        ]
    load = LOAD.search(provider.error or "")
    missing = MISSING.search(load[2]) if load else None
    library = missing[1] if missing else ""
    if not re.match(rf"{CUDA_NAMES}|libcudnn", library):
        return []
    other = _other_cuda(machine)
    # Without a GPU nobody misses them; libraries of another version are a mistake anyway.
    if other is None and not gpus:
        return []
    what = (
        f"CUDA {', '.join(map(str, sorted(machine.cuda_majors)))} libraries under a CUDA "
        f"{_major(build)} build of onnxruntime"
        if other
        else "onnxruntime-gpu without its CUDA libraries"
    )
    return [
        Problem(
            what,
            f"CUDAExecutionProvider {provider_reason(provider, machine)}.",
            (f"pip install '{GPU_PACKAGE}=={machine.onnxruntime.version}'",),
        )
    ]


def _tensorrt_problem(machine: Machine) -> list[Problem]:
    module = machine.tensorrt
    if module.version is None and module.packages:
        names = ", ".join(f"{name} {version}" for name, version in module.packages.items())
        return [
            Problem(
                "TensorRT is installed but does not load",
                f"{names}: {module.reason}. Its Python bindings and its libraries come in "
                "packages of their own, which must have the same version.",
                (f"pip uninstall -y {' '.join(module.packages)}", "pip install tensorrt"),
            )
        ]
    return []


def _major(version: str) -> int:
    return int(version.split(".", maxsplit=1)[0])
