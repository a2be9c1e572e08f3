"""A segmenter's repository, and its client against a server that speaks Triton's protocol."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from typer.testing import CliRunner

from emfast.cli.main import app
from emfast.segmentation.segmenter import Segmenter
from emfast.triton.repository import TritonOptions, write_triton_repository
from engines.bundle import MANIFEST, open_bundle
from engines.cache import EngineCache
from engines.engine import Array
from engines.entry import Entry, Verification
from engines.errors import UserError
from engines.plan import Profile, Range
from export.triton import CONFIG, parse_config
from tests.bundles import write_denoiser_bundle, write_segmenter_bundle
from tests.recipes import VERIFICATION, make_recipe

pytest.importorskip("tritonclient.grpc", reason="needs the extra triton")
import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

NAME = "test-segmenter"


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Two calls of Triton's protocol on a repository, with onnxruntime behind them."""

    def __init__(self, repository: Path) -> None:
        folder = repository / NAME
        self.config = parse_config((folder / CONFIG).read_text())
        self.session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        assert request.name == NAME
        return service_pb2.ModelConfigResponse(config=self.config)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        (tensor,), (declared,) = request.inputs, self.config.input
        assert (tensor.name, tensor.datatype) == (declared.name, "FP32")
        dims = [d if d > 0 else s for d, s in zip(declared.dims, tensor.shape[1:], strict=True)]
        assert list(tensor.shape[1:]) == dims
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tensor.shape)
        (output,) = self.config.output
        (result,) = self.session.run([output.name], {tensor.name: x})
        response = service_pb2.ModelInferResponse(raw_output_contents=[result.tobytes()])
        response.outputs.add(name=output.name, datatype="FP32", shape=result.shape)
        return response


@pytest.fixture(params=[("standardize", 1), ("unit", 2)], ids=["standardize", "unit"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    normalization, classes = request.param
    return write_segmenter_bundle(
        tmp_path / "bundle", threshold=0.88, classes=classes, normalization=normalization
    )


@pytest.fixture
def url(bundle: Path, tmp_path: Path) -> Iterator[str]:
    write_triton_repository(str(bundle), tmp_path / "models", TritonOptions(device="cpu"))
    server = grpc.server(futures.ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Triton(tmp_path / "models"), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_the_client_gives_the_masks_of_emfast(
    bundle: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 50), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "slice.png")
    spec = importlib.util.spec_from_file_location("client", tmp_path / "models" / "client.py")
    assert spec is not None and spec.loader is not None
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    arguments = [str(tmp_path / "slice.png"), str(tmp_path / "mask.png")]
    monkeypatch.setattr(sys, "argv", ["client.py", *arguments, "--url", url, "--model", NAME])
    client.main()
    with Segmenter.open(bundle, "onnxruntime-cpu") as segmenter:
        expected = segmenter.segment(image[None])[0]
        expected *= 255 if segmenter.spec.classes == 1 else 1
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), expected)
    assert len(np.unique(expected)) > 1


def test_the_command_writes_a_repository(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    arguments = ["export", str(bundle), "--triton", str(out), "--size", "64x32", "--batch", "3"]
    result = CliRunner().invoke(app, [*arguments, "--queue-delay", "0", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "model.onnx" in result.output and "README.md" in result.output
    config = parse_config((out / NAME / CONFIG).read_text())
    assert list(config.model_warmup[0].inputs["x"].dims) == [1, 32, 64]
    assert config.max_batch_size == 3
    readme = (out / "README.md").read_text()
    assert "tritonserver --model-repository=/models" in readme and f"--model {NAME}" in readme
    assert "64 x 32" in readme and "--gpus" not in readme
    assert max(len(line) for line in readme.splitlines()) <= 100


def put(
    bundle: Path, verifications: tuple[Verification, ...] = (VERIFICATION,), **changes: Any
) -> Entry:
    """An engine file of a bundle's FP32 graph in the cache."""
    graph = open_bundle(bundle).manifest.files["model.onnx"]
    profile = Profile(Range(1, 2, 4), Range(16, 256, 512), Range(16, 256, 512))
    recipe = make_recipe(**{"graph": graph, "precision": "fp32", "profile": profile, **changes})
    return EngineCache().put(recipe, b"plan", {}, 1.0, verifications)


def test_a_cached_engine_is_served_with_its_shapes(bundle: Path, tmp_path: Path) -> None:
    put(bundle)
    static = Profile(Range(1, 8, 8), Range.fixed(256), Range.fixed(256))
    put(bundle, profile=Profile.fixed(2, 256, 256))  # takes no batch of 1
    put(bundle, (), profile=Profile.fixed(1, 128, 128))  # never verified
    put(bundle, flavour="tensorrt-rtx")
    options = TritonOptions(plan="cached", max_batch=4)
    served = write_triton_repository(str(bundle), tmp_path / "first", options)
    assert served.size == (256, 256) and served.max_batch == 4
    assert (tmp_path / "first" / NAME / "1" / "model.plan").read_bytes() == b"plan"
    config = parse_config((tmp_path / "first" / NAME / CONFIG).read_text())
    assert list(config.input[0].dims) == [1, -1, -1]
    assert "TensorRT 10.16.1.11" in (tmp_path / "first" / "README.md").read_text()
    entry = put(bundle, profile=static)
    named = TritonOptions(plan=str(entry.path))
    served = write_triton_repository(str(bundle), tmp_path / "second", named)
    assert served.max_batch == 8 and served.profile == static
    config = parse_config((tmp_path / "second" / NAME / CONFIG).read_text())
    assert list(config.input[0].dims) == [1, 256, 256]


def test_engines_that_do_not_fit_are_refused(bundle: Path, tmp_path: Path) -> None:
    def message(**options: Any) -> str:
        with pytest.raises(UserError) as caught:
            write_triton_repository(str(bundle), tmp_path / "models", TritonOptions(**options))
        assert not (tmp_path / "models").exists()
        return str(caught.value)

    assert "no verified TensorRT engine of test segmenter" in message(plan="cached")
    assert "emfast engines build" in message(plan="cached")
    assert "its JSON sidecar is missing" in message(plan=str(tmp_path / "other.plan"))
    other = put(bundle, graph="5eed" * 16)
    assert "is not of test segmenter, fp32" in message(plan=str(other.path))
    rtx = put(bundle, flavour="tensorrt-rtx")
    assert "Triton runs engines of tensorrt alone" in message(plan=str(rtx.path))
    unverified = put(bundle, ())
    assert "was never verified" in message(plan=str(unverified.path))
    unverified.path.write_bytes(b"nalp")
    assert "was altered or damaged" in message(plan=str(unverified.path))
    assert "--device cpu" in message(precision="int8") or "has no int8" in message(precision="int8")


def test_mistakes_at_the_command_line(bundle: Path, tmp_path: Path) -> None:
    def message(*arguments: object) -> str:
        result = CliRunner().invoke(app, ["export", *map(str, arguments)])
        assert isinstance(result.exception, UserError), result.output
        return str(result.exception)

    out = tmp_path / "models"
    assert "takes a bundle and no --out" in message("--triton", out)
    assert "takes a bundle and no --out" in message(bundle, "--triton", out, "--out", out)
    assert "give --precision once" in message(
        bundle, "--triton", out, "--precision", "fp16", "--precision", "fp32"
    )
    assert "expected a width and a height" in message(bundle, "--triton", out, "--size", "256")
    assert "--out, or --triton" in message(bundle)
    denoiser = write_denoiser_bundle(tmp_path / "denoiser")
    assert "repositories are for segmenters" in message(denoiser, "--triton", out)
    assert not out.exists()


def test_what_one_slice_cannot_tell_is_refused(bundle: Path, tmp_path: Path) -> None:
    path = bundle / MANIFEST
    values = json.loads(path.read_text())
    values["model"].update(scope="volume", normalization="standardize")
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="normalises greys by the whole volume"):
        write_triton_repository(str(bundle), tmp_path / "models", TritonOptions())
    values["model"].update(scope="slice", pixel_size=5.0)
    path.write_text(json.dumps(values))
    served = write_triton_repository(str(bundle), tmp_path / "models", TritonOptions())
    assert served.parameters["pixel_size_nm"] == "5"
    assert "pixels should be 5 nm wide" in (tmp_path / "models" / "README.md").read_text()


def test_halves_are_sent_as_halves() -> None:
    """The shipped client has a wire type for every type that a repository may declare."""
    from emfast.triton.client import WIRE_TYPES
    from export.triton import DATATYPES

    assert set(WIRE_TYPES) == set(DATATYPES.values())
    for name, declared in DATATYPES.items():
        dtype: type[Array] = WIRE_TYPES[declared][1]
        assert np.dtype(dtype) == np.dtype(name)
