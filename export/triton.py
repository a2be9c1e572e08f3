"""Writing a model repository for NVIDIA's Triton Inference Server.

    <repository>/<model>/config.pbtxt     what the server is told
                         1/model.onnx     the graph, or model.plan, a TensorRT engine
                         OUTPUT-labels.txt  names of an output's channels, one a line

``config.pbtxt`` is filled in as Triton's own protobuf message, which comes with its Python client,
printed, and read back: a field that Triton does not know, or a value of another type, cannot get
into it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from engines.bundle import TensorSpec
from engines.errors import UserError
from engines.files import atomic_folder
from engines.plan import Profile

CONFIG = "config.pbtxt"
VERSION = "1"
DATATYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16"}
DEVICES = ("gpu", "cpu")


@dataclass(frozen=True)
class Serving:
    """A network and how Triton shall serve it.

    Attributes:
        name: of the model and its folder.
        model: an ONNX file, or a TensorRT engine.
        inputs, outputs: their first axis is "batch".
        profile: shapes that the TensorRT engine takes; None for an ONNX file, which takes all.
        size: height and width, in pixels, that most requests have: the server runs them once
            before it is ready, and a TensorRT engine replays them as CUDA graphs.
        max_batch: most items that run together.
        queue_delay: longest time, in microseconds, that a request waits for others to run with.
        instances: copies of the model that run at once on each device.
        device: one of :data:`DEVICES`.
        labels: names of the channels of an output.
        parameters: what else clients have to know, which the server passes on to them.
    """

    name: str
    model: Path
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    profile: Profile | None
    size: tuple[int, int]
    max_batch: int
    queue_delay: int
    instances: int
    device: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)


def write_repository(serving: Serving, out: Path, files: Mapping[str, str]) -> None:
    """Write a repository of one model, whole or not at all.

    Args:
        serving: the model.
        out: the repository's folder; it must not exist or be empty.
        files: texts for the repository's own folder, where Triton looks at folders alone.

    Raises:
        UserError: settings that exclude each other, shapes that Triton cannot be told, no
            tritonclient, or a folder that holds files or cannot be written.
    """
    text = config_text(serving)
    with atomic_folder(out) as folder:
        model = folder / serving.name
        (model / VERSION).mkdir(parents=True)
        (model / CONFIG).write_text(text, encoding="utf-8")
        for output, names in serving.labels.items():
            lines = "".join(f"{name}\n" for name in names)
            (model / _label_file(output)).write_text(lines, encoding="utf-8")
        file = "model.onnx" if serving.profile is None else "model.plan"
        shutil.copyfile(serving.model, model / VERSION / file)
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")


def config_text(serving: Serving) -> str:
    """The text of ``config.pbtxt``; raises as :func:`write_repository`."""
    _check(serving)
    config = _model_config(serving)
    _, text_format = _protobuf()
    text: str = text_format.MessageToString(config)
    if parse_config(text) != config:
        raise RuntimeError(f"{CONFIG} does not read back as it was written:\n{text}")
    return text


def parse_config(text: str) -> Any:
    """Read a ``config.pbtxt`` by Triton's schema; returns its ``ModelConfig``.

    Raises:
        UserError: no tritonclient, a field that the schema does not have, or a value of another
            type.
    """
    messages, text_format = _protobuf()
    try:
        return text_format.Parse(text, messages.ModelConfig())
    except text_format.ParseError as error:
        raise UserError(f"{CONFIG}: is not a configuration of Triton ({error})") from None


def batches(most: int) -> list[int]:
    """Batch sizes that are worth waiting for: powers of two below the largest, and the largest."""
    return [*(1 << power for power in range((most - 1).bit_length())), most]


def _check(serving: Serving) -> None:
    if serving.device not in DEVICES:
        raise UserError(f"device {serving.device!r}; accepted: {', '.join(DEVICES)}")
    least = {
        "batch": (serving.max_batch, 1),
        "instances": (serving.instances, 1),
        "queue delay": (serving.queue_delay, 0),
    }
    for name, (value, minimum) in least.items():
        if value < minimum:
            raise UserError(f"{name} {value}; at least {minimum} is needed")
    for spec in (*serving.inputs, *serving.outputs):
        if not spec.shape or spec.shape[0] != "batch":
            raise UserError(f"{spec.name}: its first axis is no free batch, which Triton needs")
        if spec.dtype not in DATATYPES:
            raise UserError(f"{spec.name}: is {spec.dtype}; accepted: {', '.join(DATATYPES)}")
    profile = serving.profile
    if profile is None:
        return
    if serving.device != "gpu":
        raise UserError("a TensorRT engine runs on a GPU; leave --plan out to serve on a CPU")
    batch = profile.batch
    if 1 not in batch or serving.max_batch not in batch:
        raise UserError(
            f"the engine takes batches of {batch}, but Triton would run 1 to {serving.max_batch}; "
            "build one with emfast engines build --batch 1:N:N"
        )
    height, width = serving.size
    if height not in profile.height or width not in profile.width:
        raise UserError(
            f"the engine takes width {profile.width}, height {profile.height}, not "
            f"{width} x {height}; name another --size"
        )


def _model_config(serving: Serving) -> Any:
    messages, _ = _protobuf()
    onnx = serving.profile is None
    config = messages.ModelConfig(
        name=serving.name,
        platform="onnxruntime_onnx" if onnx else "tensorrt_plan",
        backend="onnxruntime" if onnx else "tensorrt",
        max_batch_size=serving.max_batch,
    )
    for spec in serving.inputs:
        _describe(config.input.add(), spec, serving.profile)
    for spec in serving.outputs:
        output = config.output.add()
        _describe(output, spec, serving.profile)
        if spec.name in serving.labels:
            output.label_filename = _label_file(spec.name)
    config.version_policy.latest.num_versions = 1
    kind = messages.ModelInstanceGroup.Kind.Value(f"KIND_{serving.device.upper()}")
    config.instance_group.add(count=serving.instances, kind=kind)
    sizes = batches(serving.max_batch)
    if serving.max_batch > 1:
        config.dynamic_batching.preferred_batch_size.extend(sizes[1:])
        config.dynamic_batching.max_queue_delay_microseconds = serving.queue_delay
    if serving.device == "gpu":
        config.optimization.input_pinned_memory.enable = True
        config.optimization.output_pinned_memory.enable = True
    if not onnx:
        _graphs(config.optimization.cuda, serving, sizes)
    for batch in sizes:
        _warm_up(config.model_warmup.add(name=f"batch {batch}", batch_size=batch), serving)
    for key, value in serving.parameters.items():
        config.parameters[key].string_value = value
    return config


def _describe(tensor: Any, spec: TensorSpec, profile: Profile | None) -> None:
    """Name, type and dimensions, which leave the batch out, of an input or output."""
    messages, _ = _protobuf()
    tensor.name = spec.name
    tensor.data_type = messages.DataType.Value(DATATYPES[spec.dtype])
    tensor.dims.extend(_dims(spec, profile))
    if len(spec.shape) == 1:
        # Triton has no item without dimensions: one number a request, and no axis for the network.
        tensor.reshape.SetInParent()


def _dims(spec: TensorSpec, profile: Profile | None) -> list[int]:
    if len(spec.shape) == 1:
        return [1]
    free = {} if profile is None else {"height": profile.height, "width": profile.width}
    dims = []
    for size in spec.shape[1:]:
        if isinstance(size, int):
            dims.append(size)
        else:
            sizes = free.get(size)
            dims.append(sizes.best if sizes is not None and sizes.static else -1)
    return dims


def _item(spec: TensorSpec, size: tuple[int, int]) -> list[int]:
    """The dimensions of an item of the usual size."""
    usual = {"height": size[0], "width": size[1]}
    if len(spec.shape) == 1:
        return [1]
    try:
        return [axis if isinstance(axis, int) else usual[axis] for axis in spec.shape[1:]]
    except KeyError as error:
        raise UserError(f"{spec.name}: has a free axis {error}; accepted: height, width") from None


def _graphs(cuda: Any, serving: Serving, sizes: Sequence[int]) -> None:
    """CUDA graphs of the usual size, one for each preferred batch and those below it.

    A graph that runs a smaller batch computes the missing items from what is left in memory; items
    do not see each other.
    """
    cuda.graphs = True
    for below, batch in zip([0, *sizes], sizes, strict=False):
        graph = cuda.graph_spec.add(batch_size=batch)
        graph.graph_lower_bound.batch_size = below + 1
        for spec in serving.inputs:
            dims = _item(spec, serving.size)
            graph.input[spec.name].dim.extend(dims)
            graph.graph_lower_bound.input[spec.name].dim.extend(dims)


def _warm_up(warm_up: Any, serving: Serving) -> None:
    messages, _ = _protobuf()
    for spec in serving.inputs:
        tensor = warm_up.inputs[spec.name]
        tensor.data_type = messages.DataType.Value(DATATYPES[spec.dtype])
        tensor.dims.extend(_item(spec, serving.size))
        tensor.zero_data = True


def _label_file(output: str) -> str:
    return f"{output}-labels.txt"


def _protobuf() -> tuple[Any, Any]:
    """Triton's messages, and protobuf's text format."""
    try:
        messages = import_module("tritonclient.grpc.model_config_pb2")
        return messages, import_module("google.protobuf.text_format")
    except (ImportError, RuntimeError) as error:  # tritonclient raises RuntimeError without grpc
        reason = " ".join(str(error).split())
        raise UserError(
            f"a model repository needs Triton's schema, which does not load ({reason}): "
            "pip install 'emfast[triton]'"
        ) from None
