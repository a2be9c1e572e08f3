from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.bundle import Bundle, TensorSpec, open_bundle
from engines.engine import EngineUnavailableError
from engines.errors import UserError
from engines.gpu import NoGpuError, gpus
from engines.plan import BuildOptions, Profile, Range
from engines.tensorrt import logger
from engines.tensorrt.library import targets_of
from export.tensorrt import (
    Built,
    Parsed,
    add_profile,
    build,
    check_options,
    check_tensors,
    configure,
    count_layers,
    layer_information,
    parse,
)
from export.timings import TimingCache

trt = pytest.importorskip("tensorrt_rtx")

RTX = "tensorrt-rtx"
DYNAMIC = Profile(Range(1, 2, 4), Range(128, 256, 512), Range(128, 256, 1024))
STATIC = Profile.fixed(2, 256, 256)
IMAGE = ("batch", 1, "height", "width")
SM86 = BuildOptions(targets=("sm86",))


def has_gpu() -> bool:
    try:
        return bool(gpus())
    except NoGpuError:
        return False


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def gpus() -> list[Any]:
        raise NoGpuError("no NVIDIA driver on this machine")

    monkeypatch.setattr("export.tensorrt.gpus", gpus)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.tensorrt.gpus", lambda: ["a GPU"])
    monkeypatch.setattr("export.tensorrt.check_device", lambda flavour: None)


@pytest.fixture
def rtx_for_tensorrt(monkeypatch: pytest.MonkeyPatch, one_gpu: None) -> None:
    """TensorRT-RTX answers where TensorRT is asked: its calls have the same names."""
    monkeypatch.setattr("export.tensorrt.import_tensorrt", lambda flavour: trt)
    monkeypatch.setattr("export.tensorrt.logger", lambda flavour: logger(RTX))


@pytest.fixture
def denoiser() -> Bundle:
    return open_bundle("epfl-denoiser")


def build_bundle(
    bundle: Bundle, precision: str, profile: Profile, options: BuildOptions = SM86
) -> Built:
    manifest = bundle.manifest
    graph = bundle.graph(precision)
    return build(graph, manifest.inputs, manifest.outputs, profile, options, RTX)


def layer_types(built: Built) -> dict[str, set[str]]:
    """{"CONVOLUTION": {"HALF"}}."""
    types: dict[str, set[str]] = {}
    for key in built.layers:
        operation, dtype = key.split(" ")
        types.setdefault(operation, set()).add(dtype)
    return types


def write_graph(
    path: Path, nodes: Sequence[Any], shape: Sequence[Any] = IMAGE, **kinds: Any
) -> Path:
    """An ONNX file from x to y; ``weights`` by name, ``dtype`` of both ends."""
    dtype = kinds.get("dtype", TensorProto.FLOAT)
    free = [None] * len(shape)
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", kinds.get("input_dtype", dtype), list(shape))],
        [helper.make_tensor_value_info("y", dtype, free)],
        [numpy_helper.from_array(v, k) for k, v in kinds.get("weights", {}).items()],
    )
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def specs(name: str, dtype: str = "float32", shape: tuple[Any, ...] = IMAGE) -> list[TensorSpec]:
    return [TensorSpec(name, dtype, shape, "")]


def build_graph(graph: Path, dtype: str = "float32", options: BuildOptions = SM86) -> Built:
    return build(graph, specs("x", dtype), specs("y", dtype), DYNAMIC, options, RTX)


# The shipped bundles


@pytest.mark.parametrize("profile", [DYNAMIC, STATIC], ids=["dynamic", "static"])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("name", ["epfl-denoiser", "epfl-segmenter"])
def test_shipped_bundles_build_for_two_architectures(
    name: str, precision: str, profile: Profile
) -> None:
    bundle = open_bundle(name)
    plans = {}
    for target in ("sm86", "sm120"):
        built = build_bundle(bundle, precision, profile, BuildOptions(targets=(target,)))
        assert built.warnings == () and built.seconds > 0
        plans[target] = built.plan
        types = layer_types(built)
        assert types["CONVOLUTION"] == {"HALF" if precision == "fp16" else "FLOAT"}
        if precision == "fp32":
            assert all("HALF" not in found for found in types.values())
        assert len(built.plan) > bundle.graph(precision).stat().st_size  # weights are inside
    for plan in plans.values():
        check_header(plan)
    # What an engine is built for stands in its header.
    size = trt.Runtime(logger(RTX)).engine_header_size
    assert plans["sm86"][:size] != plans["sm120"][:size]


def check_header(plan: bytes) -> None:
    """TensorRT-RTX accepts a plan as whole and of its version, before it asks for the GPU."""
    log = logger(RTX)
    runtime = trt.Runtime(log)
    problems = trt.EngineInvalidityDiagnostics
    bad = int(problems.MALFORMED_ENGINE) | int(problems.VERSION_MISMATCH)
    _, diagnostics = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    assert not int(diagnostics) & bad
    _, diagnostics = runtime.get_engine_validity(bytes(runtime.engine_header_size))
    assert int(diagnostics) & bad
    log.errors.clear()
    runtime.deserialize_cuda_engine(plan)
    assert not any("Serialization" in error for error in log.errors)
    runtime.deserialize_cuda_engine(plan[:-1])
    assert any("Serialization" in error for error in log.errors)
    log.errors.clear()


@pytest.mark.parametrize("name", ["epfl-denoiser", "epfl-segmenter"])
def test_one_engine_for_several_architectures(name: str) -> None:
    options = BuildOptions(targets=tuple(targets_of(trt)))
    built = build_bundle(open_bundle(name), "fp16", DYNAMIC, options)
    check_header(built.plan)


def test_turing_has_no_fp32_matrix_product(tmp_path: Path) -> None:
    """The error names its node."""
    weights = {"w": np.ones((16, 16), np.float32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = write_graph(tmp_path / "model.onnx", [node], weights=weights)
    fixed = Profile.fixed(1, 16, 16)
    options = BuildOptions(targets=("sm75", "sm86"))
    with pytest.raises(UserError, match="'product' for Turing .* FP32 GEMM is not supported"):
        build(graph, specs("x"), specs("y", shape=(*IMAGE[:3], 16)), fixed, options, RTX)


def test_fp16_image_inputs_and_outputs(tmp_path: Path) -> None:
    node = helper.make_node("Sigmoid", ["x"], ["y"])
    graph = write_graph(tmp_path / "half.onnx", [node], dtype=TensorProto.FLOAT16)
    assert build_graph(graph, "float16").layers == {"ACTIVATION HALF": 1}


def test_norms_and_softmax_of_a_diffusers_network_stay_fp32(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from export.onnx import to_onnx
    from export.precision import to_fp16

    torch.set_num_threads(1)

    class Network(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.unet = diffusers.UNet2DModel(
                in_channels=1,
                out_channels=1,
                layers_per_block=1,
                block_out_channels=(8,),
                norm_num_groups=4,
                down_block_types=("AttnDownBlock2D",),
                up_block_types=("UpBlock2D",),
                add_attention=False,
            )

        def forward(self, x: Any, timestep: Any) -> Any:
            return self.unet(x, timestep, return_dict=False)[0]

    inputs = [*specs("x"), TensorSpec("timestep", "float32", ("batch",), "")]
    example = (torch.zeros(2, 1, 8, 12), torch.zeros(2))
    graph = tmp_path / "unet.onnx"
    onnx.save(to_fp16(to_onnx(Network().eval(), example, inputs, specs("y"))), graph)
    profile = Profile(Range(1, 2, 4), Range(8, 8, 16), Range(8, 8, 16))
    types = layer_types(build(graph, inputs, specs("y"), profile, SM86, RTX))
    assert types["CONVOLUTION"] == {"HALF"}
    assert types["NORMALIZATION"] == types["SOFTMAX"] == {"FLOAT"}


# The pieces


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_network_has_the_inputs_and_outputs_of_the_manifest(
    denoiser: Bundle, precision: str
) -> None:
    parsed = parse(denoiser.graph(precision), RTX)
    check_tensors(parsed, denoiser.manifest.inputs, denoiser.manifest.outputs)
    network = parsed.network
    x, timestep = network.get_input(0), network.get_input(1)
    assert (x.name, x.dtype, tuple(x.shape)) == ("x", trt.DataType.FLOAT, (-1, 2, -1, -1))
    assert (timestep.name, timestep.dtype) == ("timestep", trt.DataType.FLOAT)
    assert (network.num_inputs, network.num_outputs) == (2, 1)
    assert network.get_output(0).dtype == trt.DataType.FLOAT


@pytest.mark.parametrize("profile", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_profile_is_set_for_every_input(denoiser: Bundle, profile: Profile) -> None:
    parsed = parse(denoiser.graph("fp16"), RTX)
    config = configure(parsed, SM86)
    set_profile = add_profile(parsed, config, denoiser.manifest.inputs, profile)
    assert config.num_optimization_profiles == 1
    for spec in denoiser.manifest.inputs:
        shapes = tuple(tuple(shape) for shape in set_profile.get_shape(spec.name))
        assert shapes == profile.shapes(spec)
    low, best, high = set_profile.get_shape("x")
    if profile.static:
        assert tuple(low) == tuple(best) == tuple(high) == (2, 2, 256, 256)
    else:
        assert (tuple(low), tuple(high)) == ((1, 2, 128, 128), (4, 2, 512, 1024))


def test_a_static_profile_builds_what_fixed_shapes_build(denoiser: Bundle) -> None:
    inputs = denoiser.manifest.inputs
    sizes = []
    for fixed in (False, True):
        parsed = parse(denoiser.graph("fp16"), RTX)
        if fixed:
            for index, spec in enumerate(inputs):
                parsed.network.get_input(index).shape = STATIC.shapes(spec)[0]
        config = configure(parsed, SM86)
        add_profile(parsed, config, inputs, STATIC)
        sizes.append(parsed.builder.build_serialized_network(parsed.network, config).nbytes)
    assert sizes[0] == sizes[1]


def test_options_reach_the_builder(denoiser: Bundle) -> None:
    options = BuildOptions(workspace=1 << 28, optimization_level=1, targets=("sm86", "sm120"))
    config = configure(parse(denoiser.graph("fp16"), RTX), options)
    assert config.builder_optimization_level == 1
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 1 << 28
    assert config.num_compute_capabilities == 2
    assert config.get_compute_capability(0) == trt.ComputeCapability.SM86
    assert config.get_compute_capability(1) == trt.ComputeCapability.SM120
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


def test_without_targets_rtx_builds_for_the_gpu_of_this_machine(denoiser: Bundle) -> None:
    config = configure(parse(denoiser.graph("fp16"), RTX), BuildOptions())
    assert config.num_compute_capabilities == 1
    assert config.get_compute_capability(0) == trt.ComputeCapability.CURRENT


@pytest.mark.parametrize(
    ("compatibility", "level"),
    [
        ("ampere-plus", trt.HardwareCompatibilityLevel.AMPERE_PLUS),
        ("same-compute-capability", trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY),
        ("none", None),
    ],
)
def test_hardware_compatibility_reaches_tensorrt(compatibility: str, level: Any) -> None:
    """TensorRT-RTX forgets this setting, so that a plain object stands for the configuration."""
    config = SimpleNamespace(clear_flag=lambda flag: None, hardware_compatibility_level=None)
    builder = SimpleNamespace(create_builder_config=lambda: config)
    parsed = Parsed(Path("model.onnx"), "tensorrt", trt, builder, None, None)
    configure(parsed, BuildOptions(hardware_compatibility=compatibility))
    assert config.hardware_compatibility_level == level
    assert not hasattr(config, "num_compute_capabilities")


# Mistakes


@pytest.mark.parametrize(
    ("flavour", "options", "message"),
    [
        (RTX, BuildOptions(targets=("sm90",)), r"'sm90': TensorRT-RTX builds for sm75, .*sm120"),
        (
            RTX,
            BuildOptions(hardware_compatibility="ampere-plus"),
            "no hardware compatibility .*'ampere-plus'.* with --target, of sm75",
        ),
        (
            "tensorrt",
            BuildOptions(targets=("sm86",)),
            "TensorRT has no targets .*'sm86'.* --compatibility",
        ),
    ],
)
def test_options_of_the_other_flavour(
    rtx_for_tensorrt: None, flavour: str, options: BuildOptions, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_options(options, flavour)


def test_without_a_gpu_rtx_asks_for_targets(no_gpu: None, denoiser: Bundle) -> None:
    message = r"no NVIDIA driver .*; name what TensorRT-RTX shall build for with --target, of sm75"
    with pytest.raises(EngineUnavailableError, match=message):
        build_bundle(denoiser, "fp16", STATIC, BuildOptions())
    check_options(SM86, RTX)


def test_without_a_gpu_tensorrt_does_not_build(rtx_for_tensorrt: None, no_gpu: None) -> None:
    with pytest.raises(
        EngineUnavailableError, match="no NVIDIA driver .*; TensorRT builds on the GPU that"
    ):
        check_options(BuildOptions(), "tensorrt")


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("engines.tensorrt.library.import_module", without)
    with pytest.raises(EngineUnavailableError, match=r"tensorrt_rtx is not installed.*emfast\[rtx"):
        check_options(SM86, RTX)


def test_a_builder_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(log: Any) -> Any:
        log.log(trt.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    stub = SimpleNamespace(Builder=refuse)
    monkeypatch.setattr("export.tensorrt.import_tensorrt", lambda flavour: stub)
    with pytest.raises(EngineUnavailableError, match=r"does not start \(CUDA initialization"):
        parse(Path("model.onnx"), RTX)


@pytest.mark.skipif(has_gpu(), reason="there is a GPU to build for")
def test_errors_of_the_builder_are_shown(one_gpu: None, denoiser: Bundle) -> None:
    with pytest.raises(UserError, match=r"cannot build it for batch 2, .*cudaError 35"):
        build_bundle(denoiser, "fp16", STATIC, BuildOptions())


def test_an_unsupported_operator_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["a"], name="first"),
        helper.make_node("Det", ["a"], ["y"], name="determinant"),
    ]
    graph = write_graph(tmp_path / "model.onnx", nodes)
    with pytest.raises(UserError) as error:
        build_graph(graph)
    version = f"TensorRT-RTX {trt.__version__}"
    message = f"{graph}: {version} cannot read it (node 'determinant', Det: unsupported node)"
    assert str(error.value) == message


def test_a_node_with_a_wrong_shape_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv_in", pads=[1, 1, 1, 1])
    weights = {"w": np.zeros((4, 3, 3, 3), np.float32)}
    graph = write_graph(tmp_path / "model.onnx", [node], weights=weights)
    with pytest.raises(
        UserError, match="node 'conv_in', Conv: invalid node, .*dimension failed to"
    ):
        build_graph(graph)


def test_a_node_of_two_types_is_named(tmp_path: Path) -> None:
    """Strong typing: nothing is cast that the graph does not cast."""
    node = helper.make_node("Add", ["x", "w"], ["y"], name="sum")
    weights = {"w": np.zeros((1, 1, 1, 1), np.float16)}
    graph = write_graph(tmp_path / "model.onnx", [node], weights=weights)
    with pytest.raises(UserError, match="node 'sum', Add: .*of types Float and Half") as error:
        build_graph(graph)
    assert "cudaError" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a graph", "cannot read it .model deserialize failed, .*Failed to parse the ONNX"),
        (None, "cannot read it .invalid value, .*cannot be found"),
        (b"", "its inputs are none, but the manifest has x FLOAT"),
    ],
    ids=["damaged", "missing", "empty"],
)
def test_a_file_that_is_not_a_graph(tmp_path: Path, content: bytes | None, message: str) -> None:
    graph = tmp_path / "model.onnx"
    if content is not None:
        graph.write_bytes(content)
    with pytest.raises(UserError, match=message):
        build_graph(graph)


def test_half_of_a_graph(tmp_path: Path, denoiser: Bundle) -> None:
    whole = denoiser.graph("fp16").read_bytes()
    graph = tmp_path / "model.onnx"
    graph.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="model.onnx: TensorRT-RTX .* Failed to parse the ONNX"):
        build_graph(graph)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "image"},
        {"dtype": "float16"},
        {"shape": ("batch", "height", "width")},
        {"shape": ("batch", 3, "height", "width")},
        {"shape": (1, 2, "height", "width")},
    ],
)
def test_a_graph_that_is_not_the_manifests(denoiser: Bundle, changes: dict[str, Any]) -> None:
    parsed = parse(denoiser.graph("fp16"), RTX)
    x, timestep = denoiser.manifest.inputs
    outputs = denoiser.manifest.outputs
    with pytest.raises(UserError, match=r"its inputs are timestep FLOAT \[-1\], x FLOAT \[-1, 2,"):
        check_tensors(parsed, [replace(x, **changes), timestep], outputs)
    with pytest.raises(UserError, match=r"its outputs are prediction FLOAT \[-1, 2, -1, -1\], but"):
        check_tensors(parsed, [x, timestep], [replace(outputs[0], **changes)])


def test_sizes_that_the_network_cannot_run(denoiser: Bundle) -> None:
    with pytest.raises(UserError, match=r"for batch 2, .*250 .*node_cat_1.* 14 and 15"):
        build_bundle(denoiser, "fp16", Profile.fixed(2, 250, 250))


def test_a_workspace_that_is_too_small() -> None:
    options = BuildOptions(targets=("sm86",), workspace=1)
    with pytest.raises(UserError, match="workspace limit"):
        build_bundle(open_bundle("epfl-segmenter"), "fp16", STATIC, options)


def test_int64_inputs_are_warned_of(tmp_path: Path) -> None:
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    graph = write_graph(tmp_path / "model.onnx", [node], ["batch"], input_dtype=TensorProto.INT64)
    inputs = specs("x", "int64", ("batch",))
    built = build(graph, inputs, specs("y", shape=("batch",)), DYNAMIC, SM86, RTX)
    (warning,) = built.warnings
    assert "input x is INT64" in warning and "float32 or int32" in warning


# The timing cache


class FakeCache(set[str]):
    """What TensorRT's does, with a name for every timing; damaged bytes give an empty one."""

    def combine(self, other: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self |= other
        return True

    def serialize(self) -> bytes:
        return ",".join(sorted(self)).encode()


class FakeConfig:
    def __init__(self) -> None:
        self.cache = FakeCache()

    def create_timing_cache(self, data: bytes) -> FakeCache | None:
        if data == b"another GPU":
            return None
        return FakeCache(data.decode().split(",") if data else ())

    def set_timing_cache(self, cache: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return True


def test_timings_are_kept_between_builds_and_added_up(tmp_path: Path) -> None:
    path = tmp_path / "timings"
    first, second = FakeConfig(), FakeConfig()
    caches = [TimingCache(config, path) for config in (first, second)]
    assert not first.cache and not second.cache
    first.cache.add("convolution")
    second.cache.add("pooling")
    for cache in caches:  # two builds at once: the later one keeps what the other has found
        cache.save()
        assert cache.warnings == []
    third = FakeConfig()
    TimingCache(third, path)
    assert third.cache == {"convolution", "pooling"}


@pytest.mark.parametrize("damage", ["flipped", "truncated", "foreign"])
def test_a_damaged_timing_cache_is_ignored_and_replaced(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "timings"
    config = FakeConfig()
    cache = TimingCache(config, path)
    config.cache.add("convolution")
    cache.save()
    whole = path.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes({"flipped": flipped, "truncated": whole[:40], "foreign": b"x"}[damage])
    config = FakeConfig()
    cache = TimingCache(config, path)
    assert not config.cache
    config.cache.add("pooling")
    cache.save()
    (warning,) = cache.warnings
    assert warning == f"{path}: timing cache is damaged; all kernels are timed again"
    config = FakeConfig()
    assert TimingCache(config, path).warnings == []
    assert config.cache == {"pooling"}


def test_timings_that_tensorrt_refuses(tmp_path: Path) -> None:
    path = tmp_path / "timings"
    config = FakeConfig()
    cache = TimingCache(config, path)
    config.cache.add("another GPU")
    cache.save()
    config = FakeConfig()
    cache = TimingCache(config, path)
    assert config.cache == set()
    assert cache.warnings == [
        f"{path}: TensorRT refuses this timing cache; all kernels are timed again"
    ]


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_a_tensorrt_build_writes_its_timings(rtx_for_tensorrt: None, tmp_path: Path) -> None:
    bundle = open_bundle("epfl-segmenter")
    manifest, graph = bundle.manifest, bundle.graph("fp16")
    path = tmp_path / "timings"
    arguments = (graph, manifest.inputs, manifest.outputs, STATIC, BuildOptions(), "tensorrt")
    assert build(*arguments, timing_cache=path).warnings == ()
    first = path.read_bytes()
    assert len(first) > 32
    assert build(*arguments, timing_cache=path).warnings == ()
    path.write_bytes(first[:-1])
    (warning,) = build(*arguments, timing_cache=path).warnings
    assert "timing cache is damaged" in warning
    # An engine is not lost because its timings are.
    built = build(*arguments, timing_cache=tmp_path / "missing" / "timings")
    assert built.plan and built.warnings[0].startswith("timings of this build are not kept: ")


def test_rtx_leaves_the_timing_cache_alone(tmp_path: Path) -> None:
    bundle = open_bundle("epfl-segmenter")
    manifest, graph = bundle.manifest, bundle.graph("fp16")
    path = tmp_path / "timings"
    build(graph, manifest.inputs, manifest.outputs, STATIC, SM86, RTX, timing_cache=path)
    assert not path.exists()


# The machine


def test_building_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'onnxscript'])); "
        "import export.tensorrt; assert 'tensorrt_rtx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("flavour", ["tensorrt", RTX])
def test_the_inspector_tells_the_precision_of_an_engines_layers(flavour: str) -> None:
    try:
        check_options(BuildOptions(), flavour)
    except EngineUnavailableError as reason:  # no such package, or a GPU that it is not made for
        pytest.skip(str(reason))
    bundle = open_bundle("epfl-segmenter")
    manifest, graph = bundle.manifest, bundle.graph("fp16")
    built = build(graph, manifest.inputs, manifest.outputs, STATIC, BuildOptions(), flavour)
    information = layer_information(built.plan, flavour)
    assert information["Layers"]
    assert "Half" in str(information) or "FP16" in str(information)


def test_layers_are_counted_by_operation_and_type(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT16),
    ]
    graph = write_graph(
        tmp_path / "model.onnx", nodes, dtype=TensorProto.FLOAT16, input_dtype=TensorProto.FLOAT
    )
    network = parse(graph, RTX).network
    assert count_layers(network) == {"ACTIVATION FLOAT": 2, "CAST HALF": 1}
