"""Recipes and cached engines for tests, and every way in which recipes can differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from engines.cache import EngineCache
from engines.entry import Entry, Verification
from engines.plan import BuildOptions, Profile, Range
from engines.recipe import GpuIdentity, Recipe

H100 = GpuIdentity("NVIDIA H100 80GB HBM3", "9.0", 132, "580.65.06")
RTX_4090 = GpuIdentity("NVIDIA GeForce RTX 4090", "8.9", 128, "580.65.06")
GRAPH = "5eed" * 16
# Values that differ from a recipe's where one more, or a longer word, would not be accepted.
OTHER: dict[str, Any] = {"hardware_compatibility": "ampere-plus", "targets": ("sm86",)}


def make_recipe(**changes: Any) -> Recipe:
    """A recipe that an engine may be kept under; each size of its profile may grow by one."""
    values: dict[str, Any] = {
        "graph": GRAPH,
        "precision": "fp16",
        "profile": Profile(Range(2, 4, 8), Range(128, 256, 512), Range(128, 256, 512)),
        "options": BuildOptions(workspace=2**30),
        "flavour": "tensorrt",
        "version": "10.16.1.11",
        "gpu": H100,
    }
    return Recipe(**{**values, **changes})


def ahead_of_time(*targets: str, **changes: Any) -> Recipe:
    """A recipe without a GPU, for TensorRT-RTX."""
    options = BuildOptions(targets=targets)
    return make_recipe(
        **{"flavour": "tensorrt-rtx", "gpu": None, "options": options, **changes},
    )


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all plain fields of a dataclass and of the dataclasses in it."""
    if not is_dataclass(value):
        yield path
        return
    for field in fields(value):
        yield from leaves(getattr(value, field.name), (*path, field.name))


def changed(value: Any, path: tuple[str, ...]) -> Any:
    """A copy of a dataclass with another value at a path."""
    if path:
        name, *rest = path
        if not rest and name in OTHER:
            return replace(value, **{name: OTHER[name]})
        return replace(value, **{name: changed(getattr(value, name), tuple(rest))})
    match value:
        case int():
            return value + 1
        case str():
            return f"{value}1"
    raise TypeError(f"tests.recipes knows no other value than {value!r}; add one to OTHER")


RECIPE = make_recipe()
PLAN = bytes(range(256)) * 64
VERIFICATION = Verification(
    str(H100), "onnxruntime-cpu", [{"name": "dice", "value": 0.999}], 1.5, "2026-01-02T03:04:05"
)


def put(cache: EngineCache, recipe: Recipe = RECIPE, plan: bytes = PLAN) -> Entry:
    """Keep some bytes as an engine."""
    return cache.put(recipe, plan, {"layers": {"CONVOLUTION HALF": 12}}, 2.5)


def files(cache: EngineCache) -> list[str]:
    """Names of all files of a cache but the locks."""
    return sorted(path.name for path in cache.folder.iterdir() if path.suffix != ".lock")
