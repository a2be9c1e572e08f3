"""Other environments than this one for a subprocess: hidden packages, stand-ins, GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FAKES = ROOT / "tests/engines/fakes"
# No environment inherits what this machine has beyond Python itself and numpy.
ACCELERATORS = ("onnxruntime", "openvino", "MNN", "tensorrt", "tensorrt_rtx", "cuda")
PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "mnn",
    "openvino",
    "openvino-telemetry",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "tensorrt-rtx-cu13-bindings",
    "tensorrt-rtx-cu13-libs",
    "cuda-bindings",
)


def environment(
    *fakes: str | Path,
    modules: Sequence[str] = (),
    packages: Sequence[str] = (),
    gpus: Sequence[Mapping[str, Any]] = (),
    **variables: str,
) -> dict[str, str]:
    """Environment variables of a process that finds other things than this one.

    Args:
        fakes: folders that come first on its path; names of tests/engines/fakes or paths.
        modules: names that it cannot import.
        packages: that importlib.metadata does not tell it of.
        gpus: of a fake driver; without any the driver is missing.
        variables: further ones.
    """
    folders = [FAKES / "hidden", FAKES / "nvml", *(FAKES / fake for fake in fakes), ROOT]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "HIDDEN_MODULES": ",".join(modules),
        "HIDDEN_PACKAGES": ",".join(packages),
        "FAKE_GPUS": json.dumps(gpus),
        "FAKE_NVML_ERROR": "0" if gpus else "12",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **variables,
    }


def neither() -> dict[str, str]:
    """No onnxruntime of any kind, no TensorRT, no driver."""
    return environment(modules=ACCELERATORS, packages=PACKAGES)


def gpu_package(**others: Any) -> dict[str, str]:
    """onnxruntime-gpu alone, without CUDA's libraries."""
    return environment(
        "onnxruntime_gpu",
        modules=[name for name in ACCELERATORS if name != "onnxruntime"],
        packages=[name for name in PACKAGES if name != "onnxruntime-gpu"],
        **others,
    )


def both_packages(folder: Path, **others: Any) -> dict[str, str]:
    """onnxruntime and onnxruntime-gpu side by side.

    Args:
        folder: an empty one, for the metadata of onnxruntime.
        others: as for :func:`environment`.
    """
    add_package(folder, "onnxruntime", "1.32.0")
    return environment(
        "onnxruntime_gpu",
        folder,
        modules=[name for name in ACCELERATORS if name != "onnxruntime"],
        packages=[name for name in PACKAGES if not name.startswith("onnxruntime")],
        **others,
    )


def add_package(folder: Path, name: str, version: str) -> None:
    """The metadata of an installed package, in a folder that is put on the path."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def emfast(env: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an environment."""
    code = "from emfast.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        env=dict(env),
        capture_output=True,
        text=True,
        check=False,
    )
