"""From an ONNX graph to a serialised TensorRT engine.

One path for TensorRT 10, TensorRT 11 and TensorRT-RTX: parse, compare with the manifest, set the
optimisation profile, configure, build.

Networks are strongly typed: a layer computes in the type that the graph gives it, so that
:mod:`export.precision` decides what is FP16 and what stays FP32. TensorRT 11 and TensorRT-RTX know
nothing else; TensorRT 10 is told.

Neither PyTorch nor onnx is imported, which the servers that build engines need not have.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from engines.bundle import TensorSpec
from engines.engine import EngineUnavailableError
from engines.errors import UserError
from engines.gpu import NoGpuError, gpus
from engines.plan import BuildOptions, Profile
from engines.tensorrt import TITLES, failure, import_tensorrt, logger, reasons
from engines.tensorrt.library import ECHO, check_device, open_runtime, targets_of
from export.timings import TimingCache

# TensorRT's names of the types that a manifest holds.
TYPES = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32", "int64": "INT64"}


@dataclass(frozen=True)
class Built:
    """An engine as it left the builder. It ran nowhere yet.

    Attributes:
        plan: the serialised engine.
        seconds: that it took to parse and build.
        layers: how many layers of the network, before TensorRT fuses any, there are of each
            operation and type of output: {"CONVOLUTION HALF": 30, "NORMALIZATION FLOAT": 4}.
        warnings: one line each.
    """

    plan: bytes
    seconds: float
    layers: dict[str, int]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Parsed:
    """A network, and the objects of TensorRT that it lives by.

    Attributes:
        graph: the ONNX file.
        flavour: of TensorRT.
        trt: its Python module.
        builder, network: TensorRT's.
        parser: owns the weights that the network points to.
    """

    graph: Path
    flavour: str
    trt: ModuleType
    builder: Any
    parser: Any
    network: Any

    @property
    def title(self) -> str:
        """Flavour and version in words."""
        return f"{TITLES[self.flavour]} {self.trt.__version__}"


def build(
    graph: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    profile: Profile,
    options: BuildOptions,
    flavour: str,
    timing_cache: Path | None = None,
) -> Built:
    """Build an engine.

    TensorRT times kernels on the GPU of this machine. TensorRT-RTX chooses them when the engine
    first runs, and builds in a second and without a GPU where ``options`` names targets.

    Args:
        graph: the ONNX file, weights inside.
        inputs, outputs: of the bundle's manifest.
        profile: the shapes that the engine takes.
        options: for the builder.
        flavour: one of :data:`engines.tensorrt.FLAVOURS`.
        timing_cache: file for the kernel timings of one GPU and version of TensorRT, read before
            and written after, so that similar layers are timed once. TensorRT-RTX times nothing.

    Raises:
        EngineUnavailableError: the package is missing or does not load, or a GPU is needed.
        UserError: an option that the flavour does not have, a graph that does not parse or is
            not the manifest's, shapes that it cannot run, or an error of the builder.
    """
    start = time.perf_counter()
    check_options(options, flavour)
    parsed = parse(graph, flavour)
    check_tensors(parsed, inputs, outputs)
    config = configure(parsed, options)
    add_profile(parsed, config, inputs, profile)
    warnings = [_int64_warning(spec) for spec in inputs if spec.dtype == "int64"]
    timings = None
    if timing_cache is not None and flavour == "tensorrt":
        timings = TimingCache(config, timing_cache)
    plan = parsed.builder.build_serialized_network(parsed.network, config)
    if plan is None:
        raise UserError(
            f"{graph}: {parsed.title} cannot build it for {profile} ({reasons(flavour)})"
        )
    if timings is not None:
        timings.save()
        warnings += timings.warnings
    # What was logged on the way did no harm; a later failure must not be explained by it.
    logger(flavour).errors.clear()
    seconds = time.perf_counter() - start
    return Built(bytes(plan), seconds, count_layers(parsed.network), tuple(warnings))


def check_options(options: BuildOptions, flavour: str) -> None:
    """Refuse what a flavour does not have, and a build that needs a GPU where there is none.

    Raises:
        EngineUnavailableError: the package does not load, or there is no GPU that it builds for.
        UserError: an option of the other flavour, or an unknown target.
    """
    trt = import_tensorrt(flavour)
    title, accepted = TITLES[flavour], targets_of(trt)
    if flavour == "tensorrt-rtx":
        if options.hardware_compatibility != "none":
            raise UserError(
                f"{title} has no hardware compatibility ({options.hardware_compatibility!r}); name "
                f"what to build for with --target, of {', '.join(accepted)}"
            )
        unknown = [target for target in options.targets if target not in accepted]
        if unknown:
            raise UserError(f"target {unknown[0]!r}: {title} builds for {', '.join(accepted)}")
        if options.targets:
            return
        advice = f"name what {title} shall build for with --target, of {', '.join(accepted)}"
    else:
        if options.targets:
            raise UserError(
                f"{title} has no targets ({options.targets[0]!r}), it builds for the GPU of this "
                "machine; --compatibility makes engines that run on others too"
            )
        advice = f"{title} builds on the GPU that runs the engine"
    try:
        gpus()
    except NoGpuError as error:
        raise NoGpuError(f"{error}; {advice}") from None
    check_device(flavour)


def parse(graph: Path, flavour: str) -> Parsed:
    """Read an ONNX file as a strongly typed network.

    Raises:
        EngineUnavailableError: the package does not load, or TensorRT cannot start on this GPU.
        UserError: every error of the parser, with its node.
    """
    trt = import_tensorrt(flavour)
    log = logger(flavour)
    log.errors.clear()
    try:
        builder = trt.Builder(log)
    except TypeError:  # all that the bindings say of a builder that CUDA did not let start
        told = reasons(flavour)
        raise EngineUnavailableError(f"{TITLES[flavour]} does not start ({told})") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parsed = Parsed(graph, flavour, trt, builder, trt.OnnxParser(network, log), network)
    if not parsed.parser.parse_from_file(str(graph)):
        errors = [parsed.parser.get_error(i) for i in range(parsed.parser.num_errors)]
        listed = "; ".join(map(_describe, errors))
        raise UserError(f"{graph}: {parsed.title} cannot read it ({listed or reasons(flavour)})")
    return parsed


def check_tensors(
    parsed: Parsed, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Refuse a graph whose inputs and outputs are not those of the manifest.

    Names, types, ranks and the lengths of fixed axes must be the same.
    """
    network = parsed.network
    has = {
        "inputs": [network.get_input(i) for i in range(network.num_inputs)],
        "outputs": [network.get_output(i) for i in range(network.num_outputs)],
    }
    for kind, specs in (("inputs", inputs), ("outputs", outputs)):
        got = sorted(f"{t.name} {t.dtype.name} {list(t.shape)}" for t in has[kind])
        expected = sorted(map(_expected, specs))
        if got != expected:
            raise UserError(
                f"{parsed.graph}: its {kind} are {', '.join(got) or 'none'}, but the manifest has "
                f"{', '.join(expected)} (-1 is a free axis); export the bundle again"
            )


def configure(parsed: Parsed, options: BuildOptions) -> Any:
    """TensorRT's builder configuration for options that :func:`check_options` has passed.

    TF32 is switched off: it would round the factors of FP32 convolutions and matrix products to
    the 11 bits of FP16, from which just those layers are kept. Layers are described in full to
    :func:`layer_information`; who runs the engine may lower the context's ``nvtx_verbosity``.
    """
    trt = parsed.trt
    config = parsed.builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if parsed.flavour == "tensorrt-rtx":
        # Without it TensorRT-RTX may allocate in a run, and the run cannot become a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        _set_targets(trt, config, options.targets)
    elif options.hardware_compatibility != "none":
        levels = {
            "ampere-plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
            "same-compute-capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        }
        config.hardware_compatibility_level = levels[options.hardware_compatibility]
    return config


def _set_targets(trt: ModuleType, config: Any, names: Sequence[str]) -> None:
    """Build for the compute capabilities that are named and no others, or for this GPU alone.

    Left to itself TensorRT-RTX builds for all from Ampere on, later ones included, and asks no
    GPU; but where an engine may run is then a matter of its version.
    """
    known = trt.ComputeCapability
    wanted = [known.__members__[name.upper()] for name in names] or [known.CURRENT]
    config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        if not config.set_compute_capability(capability, index):
            raise UserError(
                f"TensorRT-RTX refuses the target {capability.name} ({reasons('tensorrt-rtx')})"
            )


def add_profile(parsed: Parsed, config: Any, inputs: Sequence[TensorSpec], profile: Profile) -> Any:
    """Set the one optimisation profile of the engine.

    Where the three shapes are one, TensorRT-RTX builds what it builds of a graph of fixed shapes.

    Returns:
        TensorRT's profile.
    """
    result = parsed.builder.create_optimization_profile()
    for spec in inputs:
        result.set_shape(spec.name, *profile.shapes(spec))
    if config.add_optimization_profile(result) < 0:
        raise UserError(
            f"{parsed.graph}: {parsed.title} takes no profile of {profile} "
            f"({reasons(parsed.flavour)})"
        )
    return result


def count_layers(network: Any) -> dict[str, int]:
    """Layers of a network by operation and type of the output, the most frequent first."""
    layers = (network.get_layer(i) for i in range(network.num_layers))
    counts = Counter(
        f"{layer.type.name} {layer.get_output(0).dtype.name}"
        for layer in layers
        if layer.num_outputs
    )
    return dict(counts.most_common())


def layer_information(plan: bytes, flavour: str) -> dict[str, Any]:
    """What TensorRT's inspector tells of an engine's layers, after fusion. Needs a GPU.

    Raises:
        UserError: TensorRT does not take the engine.
    """
    trt = import_tensorrt(flavour)
    runtime = open_runtime(trt, flavour)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise failure(flavour, "refuses the engine")
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    information: dict[str, Any] = json.loads(text)
    return information


def _expected(spec: TensorSpec) -> str:
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return f"{spec.name} {TYPES.get(spec.dtype, spec.dtype)} {shape}"


def _int64_warning(spec: TensorSpec) -> str:
    return (
        f"input {spec.name} is INT64, of which TensorRT warns; export the network with "
        "float32 or int32"
    )


def _describe(error: Any) -> str:
    """An error of the parser: node, operator, kind and what TensorRT says."""
    kind = error.code().name.lower().replace("_", " ")
    lines = [line for line in error.desc().splitlines() if ECHO not in line]
    said = " ".join(" ".join(lines).split())
    node = f"node {error.node_name()!r}, {error.node_operator()}: " if error.node_operator() else ""
    # The parser quotes the condition that failed, which is "false" where it has no words.
    return f"{node}{kind}" + ("" if said in ("", "false") else f", {said}")
