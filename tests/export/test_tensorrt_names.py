"""Every name of TensorRT that we use exists in TensorRT 10, TensorRT 11 and TensorRT-RTX.

TensorRT's published bindings do not import without NVIDIA's libraries, but their binaries hold
every name that they define. TensorRT-RTX imports everywhere and also tells whose a name is.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import math
import os
import re
import sys
import time
import zipfile
from collections import Counter, deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
import pytest

rtx = pytest.importorskip("tensorrt_rtx")

ROOT = Path(__file__).parents[2]
FILES = (
    *sorted((ROOT / "engines/tensorrt").glob("*.py")),
    ROOT / "export/tensorrt.py",
    ROOT / "export/timings.py",
)
VERSIONS = ("10.16.1.11", "11.4.0.106")
WHEELS = "EMFAST_TENSORRT_WHEELS"

# Names that TensorRT-RTX alone has. They stand where the flavour is known or asked for.
_TARGETS = "only TensorRT-RTX builds for GPUs that are not there"
_KERNELS = "only TensorRT-RTX compiles kernels when an engine first runs"
RTX_ONLY = {
    "ComputeCapability": _TARGETS,
    "CURRENT": _TARGETS,
    "num_compute_capabilities": _TARGETS,
    "set_compute_capability": _TARGETS,
    "DynamicShapesKernelSpecializationStrategy": _KERNELS,
    "EAGER": _KERNELS,
    "dynamic_shapes_kernel_specialization_strategy": _KERNELS,
    "create_runtime_cache": _KERNELS,
    "deserialize": _KERNELS,
    "set_runtime_cache": _KERNELS,
    "is_stream_capturable": "TensorRT answers the question by failing to capture",
    "REQUIRE_USER_ALLOCATION": "TensorRT never allocates in a run whose memory the caller gave",
}

# A method of Python's lists, which TensorRT-RTX gives to a list type of its own.
NOT_TENSORRT = {"append"}

# Variables and attributes that hold an object of TensorRT, by file: there its class is asked.
BUILDER = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "runtime": "Runtime",
}
OBJECTS = {
    "export/tensorrt.py": BUILDER,
    "export/timings.py": {"config": "IBuilderConfig", "_config": "IBuilderConfig"},
    "engines/tensorrt/engine.py": {"_engine": "ICudaEngine", "_runtime": "Runtime"},
    "engines/tensorrt/context.py": {
        "_context": "IExecutionContext",
        "_engine": "ICudaEngine",
        "_config": "IRuntimeConfig",
    },
}

# What else has attributes in these files, besides our own classes and modules.
PYTHON = (
    *(str, bytes, int, list, dict, set, tuple, deque, Counter, np.ndarray, np.dtype, Path),
    *(OSError, ImportError, logging.Logger, SimpleQueue, ModuleType, type(Lock())),
    *(type(hashlib.sha256()), hashlib, json, logging, math, np, time),
)


def problems(source: str, file: str = "export/tensorrt.py") -> list[str]:
    """What in a source file is not a name of every TensorRT that we run on."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for name, owner in _uses(node, OBJECTS.get(file, {})):
            reason = _objection(name, owner)
            if reason:
                found.append(f"{file}:{getattr(node, 'lineno', 0)}: {name} {reason}")
    return found


def _uses(node: ast.AST, objects: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """The names that a node uses, each with its owner in TensorRT-RTX where that is known."""
    if isinstance(node, ast.Attribute):
        yield node.attr, _owner(node.value, objects)
        return
    function = (
        node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    )
    if isinstance(node, ast.Call) and function in ("getattr", "hasattr", "setattr"):
        name = node.args[1]
        if isinstance(name, ast.Constant):
            yield str(name.value), _owner(node.args[0], objects)
        elif function != "hasattr":  # which only asks
            yield f"{function} of a computed name", None


def _owner(value: ast.expr, objects: dict[str, str]) -> Any:
    """The object of TensorRT-RTX that an expression stands for; None where it is not known."""
    if isinstance(value, ast.Name | ast.Attribute):
        name = value.id if isinstance(value, ast.Name) else value.attr
        if name in ("trt", "_trt"):
            return rtx
        if name in objects:
            return getattr(rtx, objects[name])
    if isinstance(value, ast.Attribute) and _owner(value.value, objects) is rtx:
        return getattr(rtx, value.attr, None)
    return None


def _objection(name: str, owner: Any) -> str:
    if name.startswith("__"):
        return ""
    if owner is not None and not hasattr(owner, name):
        return f"is no name of TensorRT-RTX's {owner.__name__.rsplit('.', 1)[-1]}"
    if name not in rtx_names():
        return "" if name in other_names() else "is no name of TensorRT-RTX, ours or Python's"
    if name in RTX_ONLY:
        return ""
    missing = [version for version in VERSIONS if not published(version, name)]
    return f"is no name of TensorRT {' and '.join(missing)}" if missing else ""


@cache
def rtx_names() -> set[str]:
    """All names of TensorRT-RTX: of its module, its classes and its enumerations."""
    values = {name: getattr(rtx, name) for name in dir(rtx)}
    names = {name for name, value in values.items() if not isinstance(value, ModuleType)}
    names = names.union(*(dir(value) for value in values.values() if isinstance(value, type)))
    return names - NOT_TENSORRT


@cache
def other_names() -> set[str]:
    """Names of Python's types, and those that engines/ and export/ define."""
    names = set().union(*(dir(value) for value in PYTHON))
    for path in (*(ROOT / "engines").rglob("*.py"), *(ROOT / "export").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
                names.update(_assigned(targets))
    return names


def _assigned(targets: list[ast.expr]) -> Iterator[str]:
    """Names that an assignment makes: a variable, an attribute of self, or several at once."""
    for target in targets:
        if isinstance(target, ast.Tuple):
            yield from _assigned(target.elts)
        elif isinstance(target, ast.Name):
            yield target.id
        elif isinstance(target, ast.Attribute) and getattr(target.value, "id", "") == "self":
            yield target.attr


def published(version: str, name: str) -> bool:
    """Whether the bindings of a version define a name."""
    binary, python = bindings(version)
    # A C string of its own, or the end of one: linkers keep "INTERNAL_ERROR" for "ERROR" too.
    pattern = rb"\x00[A-Za-z0-9_]*" + name.encode() + rb"\x00"
    defined = rf"(?m)^(def {name}\(|\w+\.{name} = )"
    return bool(re.search(pattern, binary) or re.search(defined, python))


@cache
def bindings(version: str) -> tuple[bytes, str]:
    """The binary and the Python part of a version's wheel."""
    folders = [Path(sys.prefix) / "wheels"]
    if WHEELS in os.environ:
        folders.append(Path(os.environ[WHEELS]))
    for folder in folders:
        for wheel in folder.glob(f"tensorrt_cu13_bindings-{version}-*.whl"):
            with zipfile.ZipFile(wheel) as files:
                binary = files.read("tensorrt_bindings/tensorrt.so")
                return binary, files.read("tensorrt_bindings/__init__.py").decode()
    pytest.skip(
        f"no bindings of TensorRT {version} in {' or '.join(map(str, folders))}; get them by: pip "
        f"download --no-deps --only-binary :all: --platform manylinux_2_28_x86_64 --python-version "
        f"312 --dest {folders[0]} tensorrt_cu13_bindings=={version}; or name their folder in "
        f"{WHEELS}"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_exists_in_tensorrt_10_and_11_and_rtx(path: Path) -> None:
    assert problems(path.read_text(), str(path.relative_to(ROOT))) == []


@pytest.mark.parametrize("name", RTX_ONLY)
def test_names_of_rtx_alone_are_used_and_no_others_have_them(name: str) -> None:
    assert name in rtx_names()
    assert not [version for version in VERSIONS if published(version, name)]
    assert any(re.search(rf"\b{name}\b", path.read_text()) for path in FILES)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "FP16 is no name of TensorRT-RTX's BuilderFlag"),
        (
            "1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)",
            "EXPLICIT_BATCH is no name of TensorRT-RTX's NetworkDefinitionCreationFlag",
        ),
        (
            "flags = trt.NetworkDefinitionCreationFlag\nflags.EXPLICIT_BATCH",
            "EXPLICIT_BATCH is no name of TensorRT-RTX, ours",
        ),
        ("builder.platform_has_fast_fp16", "platform_has_fast_fp16 is no name of TensorRT-RTX's B"),
        ("thing.platform_has_fast_fp16", "platform_has_fast_fp16 is no name of TensorRT-RTX, ours"),
        ("config.max_workspace_size = 1", "max_workspace_size is no name of"),
        ("context.execute_async_v2([], 0)", "execute_async_v2 is no name of"),
        ("getattr(config, 'set_calibration_profile')(p)", "set_calibration_profile is no name of"),
        ("hasattr(trt, 'IInt8Calibrator')", "IInt8Calibrator is no name of"),
        ("getattr(trt.BuilderFlag, name)", "getattr of a computed name is no name"),
        ("runtime.engine_header_size", "engine_header_size is no name of TensorRT 10.16.1.11 and"),
        ("config.get_shape('x')", "get_shape is no name of TensorRT-RTX's IBuilderConfig"),
    ],
)
def test_the_check_finds_names_that_are_not_everywhere(source: str, problem: str) -> None:
    (found,) = problems(source)
    assert found.startswith("export/tensorrt.py:") and problem in found


@pytest.mark.parametrize(
    ("name", "in_10", "in_11"),
    [
        ("STRONGLY_TYPED", True, True),
        ("execute_async_v3", True, True),
        ("ERROR", True, True),
        ("nptype", True, True),
        ("EXPLICIT_BATCH", True, False),
        ("FP16", True, False),
        ("device_memory_size", True, False),
        ("execute_async_v2", False, False),
    ],
)
def test_bindings_tell_what_their_version_has(name: str, in_10: bool, in_11: bool) -> None:
    assert [published(version, name) for version in VERSIONS] == [in_10, in_11]
