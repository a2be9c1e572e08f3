"""Opening a bundle on the best engine of this machine; TensorRT engines are built when needed."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from emfast.diffusion.spec import DenoiserSpec
from emfast.engine_files import build_engine, cached_engine, gpu_identity, keep, make_recipe
from engines.bound import BoundWherePossible
from engines.bundle import Bundle, Manifest
from engines.cache import EngineCache
from engines.engine import Engine
from engines.errors import UserError
from engines.onnxruntime import OnnxRuntimeCudaEngine
from engines.plan import BuildOptions, Profile, Range
from engines.selection import Plan, Selection, open_engine

# Images that are drawn together where nobody says.
BATCH = 4
# Longest side, in pixels, of a slice that is segmented in one piece where nobody says. The light
# U-Net takes 3.2 GB for a tile of this side (onnxruntime on the CPU, FP32), 1.1 GB for half of it;
# but tiles of half the side run 2.25 times the pixels of a 2048 x 2048 slice.
TILE = 2048
# A segmenter's engine takes slices from the least size to a whole tile, tuned for this one.
SEGMENTER_SIZE = (768, 1024)
SEGMENTER_BATCH = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shapes:
    """What a run needs, and what an engine is built for where none is at hand.

    Attributes:
        needed: shapes that the run will bring; a cached engine that takes them is used.
        built: shapes of a new engine; at least those.
    """

    needed: Profile
    built: Profile


def denoiser_shapes(batch: int, size: tuple[int, int]) -> Shapes:
    """Shapes of a sampling: one size, and batches up to the power of two from ``batch`` on.

    Args:
        batch: images that are drawn together.
        size: height and width in pixels.
    """
    height, width = (Range.fixed(side) for side in size)
    most = 1 << (batch - 1).bit_length()
    return Shapes(
        needed=Profile(Range.fixed(batch), height, width),
        built=Profile(Range(1, most, most), height, width),
    )


def segmenter_shapes(manifest: Manifest, tile: int, size: tuple[int, int] | None = None) -> Shapes:
    """Shapes of a segmentation: slices of any size up to a tile.

    Args:
        manifest: of the segmenter.
        tile: longest side that runs in one piece, in pixels.
        size: height and width of all slices, where they are known; an engine that was built for
            this size alone is then taken.
    """
    multiple = manifest.multiple
    most = max(tile // multiple * multiple, multiple)
    height, width = (Range(multiple, min(best, most), most) for best in SEGMENTER_SIZE)
    built = Profile(Range(1, 1, SEGMENTER_BATCH), height, width)
    if size is None:
        return Shapes(replace(built, batch=Range.fixed(1)), built)
    padded = (min(-(-side // multiple) * multiple, most) for side in size)
    return Shapes(Profile.fixed(1, *padded), built)


def default_profile(bundle: Bundle) -> Profile:
    """Shapes that an engine is built for where nobody says: those of the commands' defaults."""
    manifest = bundle.manifest
    if manifest.kind == "segmenter":
        return segmenter_shapes(manifest, TILE).built
    return denoiser_shapes(BATCH, DenoiserSpec.from_dict(manifest.model).size).built


def open_runtime(
    bundle: Bundle,
    shapes: Shapes,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Selection:
    """Open a bundle on an engine; a TensorRT engine that is missing is built first.

    A segmenter that runs on onnxruntime's CUDA provider runs on bound memory where it can. A
    denoiser is bound by its sampling loop, and TensorRT's engines hold memory and graphs of their
    own.

    Args:
        bundle: to run.
        shapes: that it will be run with.
        engine, precision, threads: as for :func:`engines.selection.open_engine`.

    Raises:
        UserError: as :func:`engines.selection.open_engine`.
    """
    selection = open_engine(bundle, engine, precision, threads, partial(ready_plan, bundle, shapes))
    if bundle.manifest.kind != "segmenter":
        return selection
    return replace(selection, engine=_on_bound_memory(selection.engine, bundle.manifest))


def _on_bound_memory(engine: Engine, manifest: Manifest) -> Engine:
    """onnxruntime on CUDA on bound memory; any other engine, or one that cannot, as it is."""
    if not isinstance(engine, OnnxRuntimeCudaEngine):
        return engine
    try:
        return BoundWherePossible(engine, manifest.inputs, manifest.outputs)
    except UserError as error:
        _log.warning("%s: runs without bound memory (%s)", engine.info, error)
        return engine


def ready_plan(bundle: Bundle, shapes: Shapes, flavour: str, precision: str) -> Plan:
    """The engine file for a run on this machine's GPU: from the cache, or built and verified.

    Where the cache cannot be written, the engine serves this run alone, and a warning says so.

    Raises:
        UserError: no GPU, or a build or a verification that failed; its numbers are told.
    """
    cache, gpu = EngineCache(), gpu_identity(flavour)
    recipe = make_recipe(bundle, precision, flavour, shapes.built, BuildOptions(), gpu)
    needed = replace(recipe, profile=shapes.needed)
    entry = cached_engine(cache, needed, bundle, gpu)
    if entry is not None:
        return Plan(entry.read(), cache.kernels_path(entry, gpu))
    with ExitStack() as stack:
        try:
            stack.enter_context(cache.lock(recipe))
            # Another process may have built it while this one waited.
            entry = cached_engine(cache, needed, bundle, gpu)
        except UserError as error:
            _log.warning("the engine cache cannot be used: %s", error)
        if entry is not None:
            return Plan(entry.read(), cache.kernels_path(entry, gpu))
        if difference := cache.difference(needed):
            _log.info("%s; a new one is built", difference)
        new = build_engine(bundle, recipe, gpu)
        try:
            entry = keep(cache, new)
        except UserError as error:
            _log.warning("the engine serves this run only: %s", error)
            return Plan(new.plan)
        return Plan(new.plan, cache.kernels_path(entry, gpu))
