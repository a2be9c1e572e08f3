"""What this machine has to run networks with, found by trying it.

Packages are read from their metadata. Modules are imported, and each provider of onnxruntime runs
a network of two nodes, each in a process of its own: a library that crashes or hangs is a fact
about this machine and not the end of who asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType
from typing import Any

from engines.errors import UserError
from engines.isolated import answer, ask

# A 3 x 3 convolution by ones, times its input: on a GPU it takes cuDNN and cuBLAS.
NETWORK = Path(__file__).with_name("probe.onnx")
SIDE = 8
IMPORT_SECONDS = 120.0
# onnxruntime's TensorRT provider builds an engine first.
PROVIDER_SECONDS = 300.0
CUDA_MAJORS = range(11, 16)


@dataclass(frozen=True)
class Gpus:
    """The GPUs of this process.

    Attributes:
        gpus: as :meth:`engines.gpu.Gpu.to_dict` gives them.
        reason: why there is none.
        doubt: why their order may not be CUDA's.
    """

    gpus: tuple[dict[str, Any], ...] = ()
    reason: str | None = None
    doubt: str | None = None


@dataclass(frozen=True)
class Module:
    """A Python module and the packages that bring it.

    Attributes:
        name: as it is imported.
        packages: installed, version by name.
        version: that the module tells; None if it does not load.
        reason: why it does not load; "not installed" where nothing brings it.
        facts: more that the module tells.
    """

    name: str
    packages: dict[str, str]
    version: str | None = None
    reason: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Provider:
    """A provider that onnxruntime lists.

    Attributes:
        name: onnxruntime's.
        error: None if it ran the network with the right numbers; otherwise all that it said.
    """

    name: str
    error: str | None


def packages(*patterns: str) -> dict[str, str]:
    """Versions of the installed packages whose whole name matches one of the regular expressions.

    Names are compared in lower case with "-" for "_" and ".", as PyPI does.
    """
    found = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.name or "").lower()
        if any(re.fullmatch(pattern, name) for pattern in patterns):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def probe_gpus() -> Gpus:
    """Ask the driver for GPUs."""
    reply = ask(__name__, "gpus", timeout=IMPORT_SECONDS)
    if reply.value is None:
        return Gpus(reason=f"the NVIDIA driver cannot be asked: {reply.failure}")
    return Gpus(tuple(reply.value["gpus"]), reply.value["reason"], reply.value["doubt"])


def probe_module(name: str, *patterns: str) -> Module:
    """Import a module.

    Args:
        name: of the module.
        patterns: of the packages that bring it, for :func:`packages`.
    """
    installed = packages(*patterns)
    reply = ask(__name__, "module", name, timeout=IMPORT_SECONDS)
    if reply.value is None:
        return Module(name, installed, reason=reply.failure)
    return Module(name, installed, **reply.value)


def probe_provider(name: str) -> Provider:
    """Let a provider of onnxruntime run a network, and check the numbers."""
    reply = ask(__name__, "provider", name, timeout=PROVIDER_SECONDS)
    if reply.value is None:
        return Provider(name, f"{reply.log}\n{reply.failure}")
    error = reply.value["error"]
    return Provider(name, None if error is None else f"{reply.log}\n{error}")


def _gpus() -> dict[str, Any]:
    from engines.gpu import NoGpuError, doubtful_order, gpus

    try:
        found = [gpu.to_dict() for gpu in gpus()]
        return {"gpus": found, "reason": None, "doubt": doubtful_order()}
    except NoGpuError as error:
        return {"gpus": [], "reason": str(error), "doubt": None}


def _module(name: str) -> dict[str, Any]:
    try:
        module = _IMPORTS[name]() if name in _IMPORTS else import_module(name)
    except UserError as error:  # of those that have an import of their own
        missing = f"{name} is not installed" in str(error)
        return {"reason": "not installed" if missing else _one_line(error)}
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return {"reason": "not installed"}
        return {"reason": _one_line(error)}
    except Exception as error:  # missing libraries surface as ImportError, OSError and others
        return {"reason": _one_line(error)}
    if getattr(module, "__file__", None) is None:
        # What an uninstalled package leaves: a folder that imports as an empty module.
        return {"reason": "its folder is there, but its files are not"}
    return {"version": _version(name), "facts": _FACTS.get(name, dict)()}


def _version(name: str) -> str:
    """That of a module, or of the package that it lies in."""
    module = import_module(name)
    version = module.version() if name == "MNN" else getattr(module, "__version__", None)
    if version is None and "." in name:
        return _version(name.rpartition(".")[0])
    return str(version).partition("-")[0]  # OpenVINO appends what it was built from


def _onnxruntime_facts() -> dict[str, Any]:
    """Listed providers, and the CUDA that this build needs (None for a CPU build)."""
    ort = import_module("onnxruntime")
    cuda = getattr(ort, "cuda_version", None) or None
    return {"providers": ort.get_available_providers(), "cuda": cuda, "loadable_cuda": _cudas()}


def _cudas() -> list[int]:
    """Major versions of CUDA whose runtime the system's loader finds."""
    import ctypes

    found = []
    for major in CUDA_MAJORS:
        try:
            ctypes.CDLL(f"libcudart.so.{major}")
        except OSError:
            continue
        found.append(major)
    return found


def _rtx_facts() -> dict[str, Any]:
    """Compute capabilities that this TensorRT-RTX builds for, as "8.6"."""
    members = import_module("tensorrt_rtx").ComputeCapability.__members__
    numbers = sorted(int(name[2:]) for name in members if re.fullmatch(r"SM\d+", name))
    return {"compute_capabilities": [f"{n // 10}.{n % 10}" for n in numbers]}


def _mnn() -> ModuleType:
    from engines.mnn import import_mnn

    return import_mnn()


def _openvino() -> ModuleType:
    from engines.openvino import import_openvino

    return import_openvino()


def _cuda_facts() -> dict[str, Any]:
    """What CUDA itself says of its device."""
    from engines.cuda import open_device
    from engines.engine import EngineUnavailableError

    try:
        return {"device": str(open_device()), "reason": None}
    except EngineUnavailableError as error:
        return {"device": None, "reason": str(error)}


# As the engines import them: MNN prints, and OpenVINO would report itself.
_IMPORTS: dict[str, Callable[[], ModuleType]] = {"MNN": _mnn, "openvino": _openvino}
_FACTS: dict[str, Callable[[], dict[str, Any]]] = {
    "onnxruntime": _onnxruntime_facts,
    "tensorrt_rtx": _rtx_facts,
    "cuda.bindings.runtime": _cuda_facts,
}


def _provider(name: str) -> dict[str, Any]:
    import numpy as np

    ort = import_module("onnxruntime")
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN from wheels
    options = ort.SessionOptions()
    if name != "CPUExecutionProvider":
        # Otherwise a provider that cannot load, or takes no node, leaves all to the CPU in silence.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # Small whole numbers: exact in TF32 as well.
    x = (np.arange(SIDE * SIDE) % 4).astype(np.float32).reshape(1, 1, SIDE, SIDE)
    try:
        session = ort.InferenceSession(
            NETWORK.read_bytes(), options, providers=[name], enable_fallback=0
        )
        if session.get_providers()[0] != name:
            return {"error": f"the session runs on {session.get_providers()[0]} instead"}
        (y,) = session.run(None, {"x": x})
    except Exception as error:  # onnxruntime's errors share no public base class
        return {"error": str(error)}
    padded = np.pad(x[0, 0], 1)
    sums = sum(padded[i : i + SIDE, j : j + SIDE] for i in range(3) for j in range(3))
    if not np.array_equal(y[0, 0], sums @ x[0, 0]):
        return {"error": "it ran, but its numbers are wrong"}
    return {"error": None}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _main(arguments: list[str]) -> Any:
    what, *names = arguments
    return {"gpus": _gpus, "module": _module, "provider": _provider}[what](*names)  # type: ignore[operator]


if __name__ == "__main__":
    answer(_main)
