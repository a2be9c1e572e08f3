"""TensorRT engine files of a bundle: built, verified on a real slice, and kept in the cache.

Nothing that failed its verification is kept or run. What cannot be verified where it is built, for
want of the GPU that it is for, is verified by the GPU that first opens it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from emfast import __version__
from emfast.verification import engine_checks
from engines.bundle import Bundle
from engines.cache import EngineCache
from engines.engine import Array
from engines.entry import Entry, Verification
from engines.errors import UserError
from engines.gpu import gpus
from engines.onnxruntime import OnnxRuntimeEngine
from engines.plan import BuildOptions, Profile
from engines.recipe import GpuIdentity, Recipe
from engines.tensorrt import TITLES, TensorRTEngine, import_tensorrt
from engines.tensorrt.library import check_device
from export.tensorrt import build
from export.verify import Measure, Outputs, Run, float_run, verify

MEGABYTE = 1e6
# Images that are verified together at most: the reference runs on the CPU.
LARGEST_BATCH = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewEngine:
    """An engine that was just built, and verified where a GPU is at hand.

    Attributes:
        recipe: that it was built by.
        plan: the serialised engine.
        facts: about the build, for the cache's sidecar.
        seconds: that the build took.
        verifications: that it passed: one, or none without a GPU that it runs on.
    """

    recipe: Recipe
    plan: bytes
    facts: dict[str, Any]
    seconds: float
    verifications: tuple[Verification, ...]


def gpu_identity(flavour: str) -> GpuIdentity:
    """The GPU that this process computes on, as the cache tells GPUs apart.

    Raises:
        EngineUnavailableError: no GPU, or one that the flavour is not made for.
    """
    driver = gpus()[0].driver
    device = check_device(flavour)
    return GpuIdentity(device.name, device.compute_capability, device.multiprocessors, driver)


def make_recipe(
    bundle: Bundle,
    precision: str,
    flavour: str,
    profile: Profile,
    options: BuildOptions,
    gpu: GpuIdentity | None,
) -> Recipe:
    """The recipe of an engine: for a GPU, or ahead of time for the targets of ``options``.

    Raises:
        UserError: the bundle has no such graph, TensorRT is missing, or neither GPU nor targets.
    """
    return Recipe(
        graph=bundle.manifest.files[bundle.graph(precision).name],
        precision=precision,
        profile=profile,
        options=options,
        flavour=flavour,
        version=import_tensorrt(flavour).__version__,
        gpu=None if options.targets else gpu,
    )


def cached_engine(
    cache: EngineCache, needed: Recipe, bundle: Bundle, gpu: GpuIdentity
) -> Entry | None:
    """A cached engine that serves a recipe and was verified on this GPU, now if not before.

    One that fails is removed from the cache.

    Args:
        cache: to look in.
        needed: with the shapes that must be taken.
        bundle: that the engine is of.
        gpu: of this machine.
    """
    entry = cache.find(needed)
    if entry is None:
        return None
    title = f"{TITLES[needed.flavour]} engine {entry.path.name} ({entry.recipe.profile})"
    if str(gpu) not in {verification.gpu for verification in entry.verifications}:
        kernels = cache.kernels_path(entry, gpu)
        _log.info("%s was never verified on %s; verifying", title, gpu)
        try:
            verification = verify_plan(bundle, entry.recipe, entry.read(), gpu, kernels)
        except UserError as error:
            cache.discard(entry)
            _log.warning("%s was removed: %s", title, error)
            return None
        entry = cache.record(entry, verification)
    _log.info("%s from the cache", title)
    return entry


def build_engine(bundle: Bundle, recipe: Recipe, gpu: GpuIdentity | None) -> NewEngine:
    """Build an engine, and verify it where this machine's GPU runs it.

    Args:
        bundle: to build from.
        recipe: of it.
        gpu: of this machine.

    Raises:
        UserError: a build or a verification that failed; the engine is dropped and the numbers
            are told.
    """
    manifest = bundle.manifest
    _log.info(
        "building a %s %s engine of %s, %s, for %s: %s (once; TensorRT can take minutes)",
        TITLES[recipe.flavour],
        recipe.version,
        manifest.name,
        recipe.precision,
        recipe.hardware,
        recipe.profile,
    )
    built = build(
        bundle.graph(recipe.precision),
        manifest.inputs,
        manifest.outputs,
        recipe.profile,
        recipe.options,
        recipe.flavour,
        EngineCache().timing_path(recipe),
    )
    _log.info("built in %.1f s, %.1f MB", built.seconds, len(built.plan) / MEGABYTE)
    for warning in built.warnings:
        _log.warning("%s: %s", recipe.flavour, warning)
    facts = {
        "model": manifest.name,
        "bundle": str(bundle.path.resolve()),
        "emfast": __version__,
        "layers": built.layers,
    }
    verifications: tuple[Verification, ...] = ()
    if gpu is not None and recipe.runs_on(gpu):
        verifications = (verify_plan(bundle, recipe, built.plan, gpu),)
    else:
        _log.info("not verified, since it does not run here; the GPU that first opens it does so")
    return NewEngine(recipe, built.plan, facts, built.seconds, verifications)


def keep(cache: EngineCache, new: NewEngine) -> Entry:
    """Put an engine into the cache.

    Raises:
        UserError: the cache cannot be written.
    """
    return cache.put(new.recipe, new.plan, new.facts, new.seconds, new.verifications)


def verify_plan(
    bundle: Bundle, recipe: Recipe, plan: bytes, gpu: GpuIdentity, kernels: Path | None = None
) -> Verification:
    """Compare an engine with onnxruntime on the CPU, on a real slice.

    Args:
        bundle: that the engine was built from.
        recipe: of the engine.
        plan: the serialised engine.
        gpu: of this machine.
        kernels: as for :class:`engines.tensorrt.TensorRTEngine`.

    Raises:
        UserError: the engine does not run, or a number is outside its limit.
    """
    manifest, precision, profile = bundle.manifest, recipe.precision, recipe.profile
    batch = min(profile.batch.best, LARGEST_BATCH)
    checks, on = engine_checks(manifest, (profile.height.best, profile.width.best), batch)
    if not (profile.height.static and profile.width.static):
        largest = profile.height.maximum, profile.width.maximum
        more, also_on = engine_checks(manifest, largest)
        checks, on = (*checks, *more), f"{on}, and {also_on}"
    exact = "fp32" if "fp32" in bundle.precisions else precision
    start = time.monotonic()
    with (
        OnnxRuntimeEngine(bundle.graph(exact), "onnxruntime-cpu", exact) as reference,
        TensorRTEngine(
            plan, recipe.flavour, precision, manifest.inputs, manifest.outputs, kernels
        ) as engine,
    ):
        candidates = {precision: repeated(float_run(engine, manifest.inputs))}
        against = float_run(reference, manifest.inputs)
        measures = verify(against, candidates, checks, str(reference.info))[precision]
        _log.info("verified on %s: %s", on, "; ".join(worst(measures)))
        return Verification(
            gpu=str(gpu),
            reference=f"{reference.info}, on {on}",
            measures=[measure.to_dict() for measure in measures],
            seconds=time.monotonic() - start,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def repeated(run: Run) -> Run:
    """Run an engine until it replays a CUDA graph, which is what runs most of the time.

    Args:
        run: an engine's.
    """

    def thrice(values: Mapping[str, Array]) -> Outputs:
        for _ in range(2):
            run(values)
        return run(values)

    return thrice


def worst(measures: Sequence[Measure]) -> list[str]:
    """Of the measures of one kind, such as those of all batches, the one nearest to its limit."""
    kinds: dict[str, Measure] = {}
    for measure in measures:
        kind = measure.name.rsplit(": ", 1)[-1]
        known = kinds.get(kind)
        if known is None or (measure.value < known.value) == measure.at_least:
            kinds[kind] = measure
    return [str(measure) for measure in kinds.values()]
