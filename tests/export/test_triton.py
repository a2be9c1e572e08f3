"""The model repository by Triton's own schema, and its graph as the configuration declares it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from engines.bundle import TensorSpec, open_bundle
from engines.errors import UserError
from engines.plan import Profile, Range
from export.triton import CONFIG, Serving, batches, config_text, parse_config, write_repository
from tests.bundles import write_segmenter_bundle

pytest.importorskip("tritonclient.grpc", reason="needs the extra triton")


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    bundle = open_bundle(write_segmenter_bundle(tmp_path / "bundle", classes=2))
    return Serving(
        name="net",
        model=bundle.graph("fp32"),
        inputs=bundle.manifest.inputs,
        outputs=bundle.manifest.outputs,
        profile=None,
        size=(32, 48),
        max_batch=6,
        queue_delay=500,
        instances=2,
        device="cpu",
        labels={"probability": ("mitochondria", "vesicles")},
        parameters={"threshold": "0.5"},
    )


def plan_of(serving: Serving, profile: Profile, **changes: Any) -> Serving:
    return replace(serving, profile=profile, device="gpu", **changes)


def read(serving: Serving) -> Any:
    return parse_config(config_text(serving))


def test_the_graph_runs_with_the_declared_names_types_and_shapes(
    serving: Serving, tmp_path: Path
) -> None:
    out = tmp_path / "models"
    write_repository(serving, out, {"README.md": "how to\n"})
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    in_model = ("1/model.onnx", "config.pbtxt", "probability-labels.txt")
    assert files == ["README.md", *(f"net/{name}" for name in in_model)]
    config = parse_config((out / "net" / CONFIG).read_text())
    assert (out / "net" / config.output[0].label_filename).read_text() == (
        "mitochondria\nvesicles\n"
    )
    session = onnxruntime.InferenceSession(out / "net" / "1" / "model.onnx")
    types = {11: np.float32}  # TYPE_FP32
    free = {-1: 64}
    for batch in (1, config.max_batch_size):
        feed = {
            tensor.name: np.zeros(
                (batch, *(free.get(d, d) for d in tensor.dims)), types[tensor.data_type]
            )
            for tensor in config.input
        }
        results = session.run([tensor.name for tensor in config.output], feed)
        for tensor, result in zip(config.output, results, strict=True):
            expected = (batch, *(free.get(d, d) for d in tensor.dims))
            assert result.shape == expected and result.dtype == types[tensor.data_type]
        for warm_up in config.model_warmup:
            feed = {
                name: np.zeros((warm_up.batch_size, *one.dims), types[one.data_type])
                for name, one in warm_up.inputs.items()
            }
            session.run(None, feed)


def test_batching_and_instances_are_as_asked_for(serving: Serving) -> None:
    config = read(serving)
    assert (config.platform, config.backend) == ("onnxruntime_onnx", "onnxruntime")
    assert config.max_batch_size == 6
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4, 6]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, group.KIND_CPU)
    assert config.version_policy.latest.num_versions == 1
    assert config.parameters["threshold"].string_value == "0.5"
    assert [warm.batch_size for warm in config.model_warmup] == [1, 2, 4, 6]
    assert not config.optimization.cuda.graphs
    alone = read(replace(serving, max_batch=1, device="gpu"))
    assert not alone.HasField("dynamic_batching")
    assert alone.instance_group[0].kind == group.KIND_GPU


def test_a_tensorrt_engine_replays_cuda_graphs_of_its_size(serving: Serving) -> None:
    engine = plan_of(serving, Profile(Range(1, 4, 6), Range.fixed(32), Range(16, 48, 64)))
    config = read(engine)
    assert (config.platform, config.backend) == ("tensorrt_plan", "tensorrt")
    assert list(config.input[0].dims) == [1, 32, -1]
    assert list(config.output[0].dims) == [2, 32, -1]
    graphs = config.optimization.cuda.graph_spec
    assert config.optimization.cuda.graphs
    spans = [(graph.graph_lower_bound.batch_size, graph.batch_size) for graph in graphs]
    assert spans == [(1, 1), (2, 2), (3, 4), (5, 6)]
    for graph in graphs:
        assert list(graph.input["x"].dim) == [1, 32, 48]
        assert list(graph.graph_lower_bound.input["x"].dim) == [1, 32, 48]


def test_an_input_of_one_number_is_reshaped(serving: Serving) -> None:
    specs = (*serving.inputs, TensorSpec("timestep", "float32", ("batch",), "steps"))
    config = read(replace(serving, inputs=specs))
    timestep = config.input[1]
    assert list(timestep.dims) == [1]
    assert timestep.HasField("reshape") and not timestep.reshape.shape
    assert not config.input[0].HasField("reshape")


def test_half_precision_is_declared(serving: Serving) -> None:
    specs = tuple(replace(spec, dtype="float16") for spec in serving.inputs)
    assert "data_type: TYPE_FP16" in config_text(replace(serving, inputs=specs))


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6])])
def test_batches(most: int, sizes: list[int]) -> None:
    assert batches(most) == sizes


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("max_batch_size: 6", "max_batch: 6"),
        ("TYPE_FP32", "TYPE_FLOAT"),
        ("KIND_CPU", "KIND_TPU"),
        ("max_batch_size: 6", 'max_batch_size: "6"'),
        ("preferred_batch_size: 2", "preferred_batch_size: -2.5"),
        ("dims: -1", 'dims: "height"'),
        ("dynamic_batching {", "dynamic_batcher {"),
    ],
)
def test_the_schema_refuses_other_fields_and_types(
    serving: Serving, right: str, wrong: str
) -> None:
    text = config_text(serving)
    assert right in text
    with pytest.raises(UserError, match="is not a configuration of Triton"):
        parse_config(text.replace(right, wrong, 1))


FIXED = Profile.fixed(1, 32, 48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "tpu"}, "device 'tpu'; accepted: gpu, cpu"),
        ({"max_batch": 0}, "batch 0; at least 1"),
        ({"instances": 0}, "instances 0; at least 1"),
        ({"queue_delay": -1}, "queue delay -1; at least 0"),
        ({"profile": FIXED}, "a TensorRT engine runs on a GPU"),
        ({"profile": FIXED, "device": "gpu"}, "takes batches of 1, but Triton would run 1 to 6"),
        (
            {"profile": FIXED, "device": "gpu", "max_batch": 1, "size": (64, 48)},
            "takes width 48, height 32, not 48 x 64",
        ),
        ({"inputs": (TensorSpec("x", "int64", ("batch", 1), ""),)}, "x: is int64; accepted"),
        ({"inputs": (TensorSpec("x", "float32", (1, 1), ""),)}, "first axis is no free batch"),
        ({"inputs": (TensorSpec("x", "float32", ("batch", "t"), ""),)}, "free axis 't'"),
    ],
)
def test_what_cannot_be_served_is_refused_and_nothing_written(
    serving: Serving, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        write_repository(replace(serving, **changes), tmp_path / "models", {})
    assert not (tmp_path / "models").exists()


def test_a_used_folder_is_refused_and_a_failure_leaves_nothing(
    serving: Serving, tmp_path: Path
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        write_repository(serving, tmp_path / "used", {})
    gone = replace(serving, model=tmp_path / "gone.onnx")
    with pytest.raises(UserError, match="cannot be written"):
        write_repository(gone, tmp_path / "models", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "used"]


def test_without_the_schema_the_extra_is_named(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc.model_config_pb2", None)
    with pytest.raises(UserError, match=r"pip install 'emfast\[triton\]'"):
        config_text(serving)
