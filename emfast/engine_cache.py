"""What ``emfast engines`` does: engines built ahead of their use, verified again, removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from emfast.engine_files import build_engine, gpu_identity, keep, make_recipe, verify_plan
from emfast.runtime import default_profile
from engines.bundle import Bundle, open_bundle
from engines.cache import EngineCache, Removed
from engines.engine import EngineUnavailableError
from engines.entry import Entry
from engines.errors import UserError
from engines.plan import BuildOptions, Profile, Range
from engines.recipe import GpuIdentity
from engines.tensorrt import FLAVOURS, import_tensorrt
from engines.tensorrt.library import targets_of
from export.tensorrt import check_options

# INT8 graphs are for CPUs: TensorRT takes no 8-bit numbers without a sign.
PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class BuildRequest:
    """What to build of a bundle.

    Attributes:
        flavour: one of :data:`engines.tensorrt.FLAVOURS`, or "auto" for the first installed one.
        precision: one of :data:`PRECISIONS`, or "auto" for FP16 where there is such a graph.
        sizes: of the axes "batch", "height" and "width", where the default does not do.
        options: for the builder.
        all_targets: whether to build for every compute capability that TensorRT-RTX has, in place
            of the targets of ``options``.
    """

    flavour: str
    precision: str
    sizes: Mapping[str, Range]
    options: BuildOptions
    all_targets: bool = False


@dataclass(frozen=True)
class Verified:
    """How the verification of a cached engine went.

    Attributes:
        entry: the engine.
        outcome: in words.
        failed: whether it was removed for it.
    """

    entry: Entry
    outcome: str
    failed: bool


def build_ahead(model: str, request: BuildRequest) -> tuple[Entry, bool]:
    """Put an engine of a bundle into the cache, unless it is there.

    Args:
        model: the name of a shipped bundle, or a bundle's folder.
        request: what to build.

    Returns:
        The engine, and whether it was built now.

    Raises:
        UserError: no such bundle or precision, shapes or options that cannot be had, TensorRT is
            missing, no GPU and no targets, a build or a verification that failed, or a cache that
            cannot be written.
    """
    bundle = open_bundle(model)
    flavour = _flavour(request.flavour)
    options = request.options
    if request.all_targets:
        options = replace(options, targets=tuple(targets_of(import_tensorrt(flavour))))
    gpu = _gpu(flavour, needed=not options.targets)
    check_options(options, flavour)
    profile = replace(default_profile(bundle), **request.sizes)
    _check_multiple(profile, bundle)
    recipe = make_recipe(
        bundle, _precision(request.precision, bundle), flavour, profile, options, gpu
    )
    cache = EngineCache()
    with cache.lock(recipe):
        entry = cache.get(recipe)
        if entry is not None:
            return entry, False
        return keep(cache, build_engine(bundle, recipe, gpu)), True


def verify_all() -> Iterator[Verified]:
    """Verify every cached engine that runs on this machine's GPU; those that fail are removed.

    Raises:
        UserError: neither flavour of TensorRT runs here; the reasons are told.
    """
    cache, here, reasons = EngineCache(), {}, []
    for flavour in FLAVOURS:
        try:
            here[flavour] = (import_tensorrt(flavour).__version__, gpu_identity(flavour))
        except EngineUnavailableError as error:
            reasons.append(f"{flavour}: {error}")
    if not here:
        raise EngineUnavailableError(f"no engine can be verified here. {'. '.join(reasons)}")
    for entry in cache.entries():
        recipe = entry.recipe
        version, gpu = here.get(recipe.flavour, ("", None))
        if gpu is None or version != recipe.version or not recipe.runs_on(gpu):
            yield Verified(entry, f"does not run here (for {recipe.hardware})", failed=False)
            continue
        yield _verify(entry, cache, gpu)


def _verify(entry: Entry, cache: EngineCache, gpu: GpuIdentity) -> Verified:
    place = entry.facts["bundle"]
    try:
        bundle = open_bundle(place)
    except UserError as error:
        return Verified(entry, f"cannot be verified: {error}", failed=False)
    if entry.recipe.graph not in bundle.manifest.files.values():
        return Verified(entry, f"cannot be verified: {place} holds another model now", failed=False)
    try:
        kernels = cache.kernels_path(entry, gpu)
        verification = verify_plan(bundle, entry.recipe, entry.read(), gpu, kernels)
    except UserError as error:
        cache.discard(entry)
        return Verified(entry, f"removed: {error}", failed=True)
    cache.record(entry, verification)
    return Verified(entry, f"passed on {gpu}", failed=False)


def prune(cache: EngineCache, everything: bool) -> list[Removed]:
    """Remove from the cache what this machine can never use again, or all of it.

    Engines of other machines that share the folder stay, unless all is to go.

    Raises:
        UserError: the folder cannot be read or written.
    """
    versions, gpus = {}, []
    for flavour in FLAVOURS:
        with suppress(EngineUnavailableError):
            versions[flavour] = import_tensorrt(flavour).__version__
            gpus.append(gpu_identity(flavour))

    def unwanted(entry: Entry) -> str | None:
        return "all were to go" if everything else entry.recipe.outdated(versions, gpus)

    return cache.prune(unwanted)


def _flavour(wanted: str) -> str:
    """The flavour that is meant; "auto" is the first that is installed."""
    if wanted in FLAVOURS:
        return wanted
    if wanted != "auto":
        raise UserError(f"unknown engine {wanted!r}; accepted: auto, {', '.join(FLAVOURS)}")
    reasons = []
    for flavour in FLAVOURS:
        try:
            import_tensorrt(flavour)
        except EngineUnavailableError as error:
            reasons.append(str(error))
        else:
            return flavour
    raise EngineUnavailableError(f"no TensorRT to build with. {'. '.join(reasons)}")


def _check_multiple(profile: Profile, bundle: Bundle) -> None:
    multiple = bundle.manifest.multiple
    for axis, sizes in (("height", profile.height), ("width", profile.width)):
        if any(size % multiple for size in (sizes.minimum, sizes.best, sizes.maximum)):
            raise UserError(
                f"{axis} {sizes}: this network takes multiples of {multiple} pixels (slices of "
                "other sizes are padded to the next one)"
            )


def _precision(wanted: str, bundle: Bundle) -> str:
    if wanted == "auto":
        return "fp16" if "fp16" in bundle.precisions else "fp32"
    if wanted not in PRECISIONS:
        raise UserError(f"unknown precision {wanted!r}; accepted: auto, {', '.join(PRECISIONS)}")
    return wanted


def _gpu(flavour: str, needed: bool) -> GpuIdentity | None:
    """The GPU of this machine; None where there is none and none is needed."""
    try:
        return gpu_identity(flavour)
    except EngineUnavailableError as error:
        if not needed:
            return None
        advice = "; with --target, TensorRT-RTX builds for cards that are elsewhere"
        raise EngineUnavailableError(
            f"{error}{advice if flavour == 'tensorrt-rtx' else ''}"
        ) from None
