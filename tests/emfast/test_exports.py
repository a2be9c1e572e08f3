from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.pipelines.ddpm import pipeline_ddpm
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor, nn

from emfast import exports, verification
from emfast.channels import symmetric_channels
from emfast.data.stack import Stack, read_stack
from emfast.diffusion.noise import normal_noise
from emfast.diffusion.sampling import sample
from emfast.diffusion.spec import DEEP_FEATURES, DenoiserSpec
from emfast.exports import export_checkpoint, export_diffusers, pipeline_channels, prepare
from emfast.models.denoiser import Block, Denoiser
from emfast.models.unet import UNet
from emfast.segmentation.preprocessing import SegmenterSpec, normalize
from emfast.synthesis.denoiser import Generator
from emfast.training.checkpoint import save_checkpoint
from emfast.training.denoiser import DenoiserTask
from emfast.training.presets import DENOISER_PRESETS
from emfast.training.trainer import CHECKPOINT
from engines.bundle import Bundle
from engines.errors import UserError
from engines.selection import open_engine
from export.bundle import export_bundle

# The seed's sampling in emfast and in diffusers, largest difference in images from 0 to 1.
SAME_IMAGE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks so small run fastest on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def stack() -> Stack:
    rng = np.random.default_rng(0)
    images = rng.integers(60, 220, (3, 96, 128), dtype=np.uint8)
    return Stack(images, (images < 90).astype(np.uint8), ("a", "b", "c"), "test")


def randomize(module: nn.Module, seed: int) -> None:
    """Weights for which no part of a fresh network is without effect."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, Block):
                part.gain.fill_(0.5)
            if isinstance(part, Denoiser):
                part.head_gain.fill_(1.0)
            if isinstance(part, UNet):
                part.head.weight.mul_(20)
            if isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)


@pytest.fixture(scope="module")
def denoiser_run(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Denoiser]:
    """A run's folder, and the network whose averaged weights it holds."""
    settings = DENOISER_PRESETS["default"].override(
        widths=(16, 24), blocks=1, steps=40, crops=((64, 2), (32, 2))
    )
    task = DenoiserTask(settings, stack, torch.device("cpu"))
    network = task.network
    assert isinstance(network, Denoiser)
    randomize(network, 1)
    average = Denoiser(task.config).eval()
    randomize(average, 2)
    folder = tmp_path_factory.mktemp("runs") / "denoiser"
    folder.mkdir()
    meta = {
        "iteration": 12,
        "seconds": 3.5,
        "settings": settings.to_dict(),
        "data": {"source": "test", "slices": "0-2"},
        "task": task.describe(),
    }
    groups = {"network": network.state_dict(), "average": average.state_dict()}
    save_checkpoint(folder / CHECKPOINT, groups, meta)
    return folder, average


@pytest.fixture(scope="module")
def denoiser_bundle(
    denoiser_run: tuple[Path, Denoiser], stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    prepared = export_checkpoint(denoiser_run[0], "small", stack, {"score": 1}, None)
    return export_bundle(prepared, tmp_path_factory.mktemp("bundles") / "denoiser")


def test_a_bundle_with_fp16_inputs_draws(
    denoiser_run: tuple[Path, Denoiser], denoiser_bundle: Bundle, stack: Stack, tmp_path: Path
) -> None:
    prepared = export_checkpoint(denoiser_run[0], "half", stack, {}, 5)
    half = export_bundle(prepared, tmp_path / "half", ["fp16"], half_io=True)
    drawn = []
    for bundle in (half, denoiser_bundle):
        with Generator.open(bundle.path, "onnxruntime-cpu", threads=1) as generator:
            images, _ = generator.draw([0], steps=5, size=(32, 32))
            drawn.append(images.astype(int))
    assert np.abs(drawn[0] - drawn[1]).mean() < 1


def run(bundle: Bundle, precision: str, **inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    with open_engine(bundle, "onnxruntime-cpu", precision, 1).engine as engine:
        (output,) = engine.run(inputs).values()
    return output


def test_denoiser_bundle_computes_the_averaged_network(
    denoiser_run: tuple[Path, Denoiser], denoiser_bundle: Bundle
) -> None:
    x = np.random.default_rng(1).standard_normal((3, 2, 40, 72), dtype=np.float32)
    t = np.array([0, 17, 39], dtype=np.float32)
    with torch.no_grad():
        expected = denoiser_run[1](torch.from_numpy(x), torch.from_numpy(t)).numpy()
    assert expected.std() > 0.1
    got = run(denoiser_bundle, "fp32", x=x, timestep=t)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    half = run(denoiser_bundle, "fp16", x=x, timestep=t)
    assert 0 < np.abs(half - expected).max() < 0.05


def test_int8_denoiser_bundle_is_verified_by_a_set_and_near_the_network(
    denoiser_run: tuple[Path, Denoiser], stack: Stack, tmp_path: Path
) -> None:
    prepared = export_checkpoint(denoiser_run[0], "small", stack, {}, 2)
    bundle = export_bundle(prepared, tmp_path / "bundle", ["fp32", "int8"])
    results = bundle.manifest.verification["precisions"]
    names = [measure["name"] for measure in results["int8"]["measures"]]
    assert names[-4:] == [
        "set of 4: change of grey mean",
        "set of 4: change of grey deviation",
        "set of 4: change of mask area",
        "set of 4: loss of faithfulness",
    ]
    assert not [m for m in results["fp32"]["measures"] if m["name"].startswith("set")]
    x = np.random.default_rng(1).standard_normal((3, 2, 40, 72), dtype=np.float32)
    t = np.array([0, 17, 39], dtype=np.float32)
    with torch.no_grad():
        expected = denoiser_run[1](torch.from_numpy(x), torch.from_numpy(t)).numpy()
    error = np.abs(run(bundle, "int8", x=x, timestep=t) - expected)
    assert 0 < error.mean() < 0.05 * expected.std()
    nodes = onnx.load(bundle.graph("int8")).graph.node
    assert [n.op_type for n in nodes if DEEP_FEATURES in n.output] == ["Add"]


def test_denoiser_graph_holds_no_weight_normalisation(denoiser_bundle: Bundle) -> None:
    for precision in ("fp32", "fp16"):
        graph = onnx.load(denoiser_bundle.graph(precision)).graph
        kinds = Counter(n.op_type for n in graph.node)
        plain = {"Add", "AveragePool", "Cast", "Concat", "Conv", "DepthToSpace", "Expand"}
        plain |= {"Gather", "GatherND", "Mul", "Resize", "Shape", "Sigmoid", "Slice"}
        plain |= {"SpaceToDepth", "Split", "Unsqueeze"}
        # Up-sampling is merged into the convolutions behind it where FP32 runs.
        assert set(kinds) <= (plain | {"ConvTranspose"} if precision == "fp32" else plain)
        # SiLU is one sigmoid and one product. Beyond those: two products at most for each block
        # (its row of the table and its sum), two for a concatenation, and three for the scales of
        # input, output and skip.
        blocks, concatenations = 4, kinds["Resize"]
        assert kinds["Mul"] <= kinds["Sigmoid"] + 2 * blocks + 2 * concatenations + 3


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_denoiser_graphs_name_their_deep_features(denoiser_bundle: Bundle, precision: str) -> None:
    """Where the decoder's finest level begins, 1 / 8 of the image's sides."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(denoiser_bundle.graph(precision))).graph
    assert [output.name for output in graph.output] == ["prediction"]
    (features,) = (v for v in graph.value_info if v.name == DEEP_FEATURES)
    assert features.type.tensor_type.shape.dim[1].dim_value == 24


def test_denoiser_manifest(denoiser_bundle: Bundle) -> None:
    manifest = denoiser_bundle.manifest
    assert (manifest.kind, manifest.name, manifest.multiple) == ("denoiser", "small", 4)
    assert [t.name for t in (*manifest.inputs, *manifest.outputs)] == [
        "x",
        "timestep",
        "prediction",
    ]
    spec = DenoiserSpec.from_dict(manifest.model)
    assert spec.size == (64, 64)
    assert (spec.schedule.steps, spec.schedule.prediction) == (40, "v_prediction")
    assert [c.kind for c in spec.channels] == ["image", "mask"]
    assert manifest.training["data"] == {"source": "test", "slices": "0-2"}
    assert manifest.training["iteration"] == 12
    assert manifest.metrics == {"score": 1}
    assert manifest.verification["inputs"] == "2 crops of 64 x 64 pixels from a, b"
    for result in manifest.verification["precisions"].values():
        names = [m["name"] for m in result["measures"]]
        assert [n for n in names if n.startswith("t = 0,")]
        assert [n for n in names if n.startswith("t = 39,")]
        assert [n for n in names if "64 x 32 pixels" in n]
        assert names[-2:] == ["40 steps: PSNR of the image", "40 steps: Dice of the mask"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_folding_that_changes_the_network_is_noticed(
    denoiser_run: tuple[Path, Denoiser], stack: Stack, tmp_path: Path, precision: str
) -> None:
    prepared = export_checkpoint(denoiser_run[0], "small", stack, {}, 2)
    form = prepared.fp32_module if precision == "fp32" else prepared.module
    assert form is not None
    with torch.no_grad():
        form.get_parameter("head.weight").mul_(1.05)
    with pytest.raises(UserError, match=rf"{precision}: t = 0, prediction: maximum error"):
        export_bundle(prepared, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_trajectory_that_drifts_is_noticed(
    denoiser_run: tuple[Path, Denoiser],
    stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {"fp16": (verification.PSNR_EQUAL + 1, 0.98)}
    monkeypatch.setattr(verification, "TRAJECTORY", limits)
    prepared = export_checkpoint(denoiser_run[0], "small", stack, {}, 2)
    with pytest.raises(UserError, match=r"fp16: 2 steps: PSNR of the image .* \(at least 101\)"):
        export_bundle(prepared, tmp_path / "bundle", ["fp16"])
    assert list(tmp_path.iterdir()) == []


def test_samples_that_are_not_numbers_never_pass() -> None:
    channels = symmetric_channels(1, 1)
    x = np.zeros((1, 2, 4, 4), dtype=np.float32)
    assert verification.compare_samples(channels, x, x) == (verification.PSNR_EQUAL, 1.0)
    bad = x.copy()
    bad[0, 0, 1, 2] = np.nan
    for pair in ((x, bad), (bad, x), (bad, bad)):
        assert np.isnan(verification.compare_samples(channels, *pair)).all()


def test_sample_differences_are_told_as_psnr_and_dice() -> None:
    channels = symmetric_channels(1, 1)
    x = np.zeros((1, 2, 10, 10), dtype=np.float32)
    x[0, 1, :5] = 1
    x[0, 1, 5:] = -1
    other = x.copy()
    other[0, 0, 0, 0] += 20 / 127.5  # one of 100 pixels is 20 grey levels off
    other[0, 1, 4] = -1  # 10 of 50 object pixels are missing
    psnr, dice = verification.compare_samples(channels, x, other)
    assert psnr == pytest.approx(10 * np.log10(255**2 / (20**2 / 100)))
    assert dice == pytest.approx(2 * 40 / (40 + 50))


@pytest.fixture(scope="module")
def segmenter_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, UNet]:
    network = {"classes": 2, "widths": [4, 8, 8]}
    torch.manual_seed(3)
    unet = UNet(**network)
    randomize(unet, 3)
    path = tmp_path_factory.mktemp("runs") / "segmenter.safetensors"
    spec = SegmenterSpec(2, ("mitochondria", "membrane"), "standardize", 0.5)
    task = {"kind": "segmenter", "network": network, "model": spec.to_dict()}
    save_checkpoint(path, {"average": unet.state_dict()}, {"iteration": 1, "task": task})
    return path, unet.eval()


def test_segmenter_bundle_computes_probabilities_at_any_size(
    segmenter_checkpoint: tuple[Path, UNet], stack: Stack, tmp_path: Path
) -> None:
    path, unet = segmenter_checkpoint
    unlabelled = replace(stack, masks=None)
    bundle = export_bundle(
        export_checkpoint(path, "net", unlabelled, {}, None), tmp_path / "bundle"
    )
    for shape in ((1, 1, 64, 48), (3, 1, 4, 20)):
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        with torch.no_grad():
            expected = torch.sigmoid(unet(torch.from_numpy(x))).numpy()
        assert expected.std() > 0.05
        np.testing.assert_allclose(run(bundle, "fp32", x=x), expected, atol=1e-5)
        np.testing.assert_allclose(run(bundle, "fp16", x=x), expected, atol=5e-3)
    kinds = {n.op_type for n in onnx.load(bundle.graph("fp16")).graph.node} - {"Cast"}
    assert kinds == {"Conv", "ConvTranspose", "Relu", "MaxPool", "Concat", "Sigmoid"}
    manifest = bundle.manifest
    assert SegmenterSpec.from_dict(manifest.model).labels == ("mitochondria", "membrane")
    assert manifest.verification["inputs"] == "slice a"
    assert manifest.multiple == 4


def test_int8_segmenter_bundle_keeps_the_masks(
    segmenter_checkpoint: tuple[Path, UNet], stack: Stack, tmp_path: Path
) -> None:
    path, unet = segmenter_checkpoint
    prepared = export_checkpoint(path, "net", stack, {}, None)
    bundle = export_bundle(prepared, tmp_path / "bundle", ["int8"])
    assert bundle.manifest.verification["calibration"] == "slice b"
    measures = bundle.manifest.verification["precisions"]["int8"]["measures"]
    assert measures[-1]["name"].startswith("loss of Dice against the labels of slice a, c, from 0.")
    x = normalize(stack.images[1:2], "standardize")
    with torch.no_grad():
        expected = torch.sigmoid(unet(torch.from_numpy(x))).numpy()
    assert 0 < np.abs(run(bundle, "int8", x=x) - expected).mean() < 0.05


def test_segmenter_is_verified_on_a_whole_normalised_slice(
    segmenter_checkpoint: tuple[Path, UNet], stack: Stack
) -> None:
    prepared = export_checkpoint(segmenter_checkpoint[0], "net", stack, {}, None)
    seen = list(prepared.checks[0].run(lambda inputs: {"x": inputs["x"]}).values())
    assert [x.shape for x in seen] == [(1, 1, 96, 128), (2, 1, 48, 128)]
    np.testing.assert_array_equal(seen[0], normalize(stack.images[:1], "standardize"))


def save_pipeline(folder: Path, scheduler: dict[str, Any], channels: int = 3) -> Path:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=32,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler(**scheduler)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "scheduler",
    [
        {"beta_schedule": "linear", "prediction_type": "epsilon"},
        {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "variance_type": "fixed_large",
        },
    ],
    ids=["epsilon, linear", "v_prediction, zero terminal SNR"],
)
def test_700_steps_give_the_image_of_diffusers(
    scheduler: dict[str, Any], stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_pipeline(tmp_path / "saved", {"num_train_timesteps": 700, **scheduler})
    bundle = export_bundle(
        export_diffusers(folder, "seed", None, stack, {}, 10), tmp_path / "bundle", ["fp32"]
    )
    seed, index = 5, 3
    steps = iter(range(700, 0, -1))  # the noise at the start, then that of each step but the last

    def noise(shape: tuple[int, ...], **_: object) -> Tensor:
        return torch.from_numpy(normal_noise(seed, [index], next(steps), shape[1:]))

    monkeypatch.setattr(pipeline_ddpm, "randn_tensor", noise)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", noise)
    pipeline = DDPMPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(num_inference_steps=700, output_type="np").images[0]
    assert next(steps, None) is None

    spec = DenoiserSpec.from_dict(bundle.manifest.model)
    with open_engine(bundle, "onnxruntime-cpu", "fp32", 1).engine as engine:
        x = sample(
            lambda x, t: np.asarray(
                engine.run({"x": x, "timestep": t})["prediction"], dtype=np.float32
            ),
            spec.sampler(),
            seed,
            [index],
            (3, *spec.size),
        )
    got = np.clip(x[0] / 2 + 0.5, 0, 1).transpose(1, 2, 0)
    # A picture, not all black and white, on which every step had its effect.
    assert expected.std() > 0.2
    assert ((expected > 0) & (expected < 1)).mean() > 0.5
    assert np.abs(got - expected).max() < SAME_IMAGE


def test_diffusers_manifest(stack: Stack, tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "saved", {"num_train_timesteps": 50}, channels=2)
    prepared = export_diffusers(folder, "net", None, stack, {}, 1)
    spec = DenoiserSpec.from_dict(prepared.manifest.model)
    assert [c.kind for c in spec.channels] == ["image", "mask"]
    assert (spec.schedule.steps, spec.size, spec.clip) == (50, (32, 32), True)
    assert len(spec.sampler().steps) == 50
    assert "leading" in prepared.manifest.training["sampling"]


@pytest.mark.parametrize(
    ("kinds", "count", "expected"),
    [
        (None, 3, [("image", 0), ("image", 0), ("mask", 1)]),
        (None, 2, [("image", 0), ("mask", 1)]),
        (["mask", "image", "mask"], 3, [("mask", 1), ("image", 0), ("mask", 2)]),
        (["image"], 1, [("image", 0)]),
    ],
)
def test_channels_of_a_pipeline(
    kinds: list[str] | None, count: int, expected: list[tuple[str, int]]
) -> None:
    channels = pipeline_channels(kinds, count, clip=1.5)
    assert [(c.kind, c.label) for c in channels] == expected
    assert all(c.clip == (-1.5, 1.5) for c in channels)
    offsets = {"image": (127.5, 127.5), "mask": (0.5, 0.5)}
    assert all((c.offset, c.scale) == offsets[c.kind] for c in channels)


@pytest.mark.parametrize(
    ("kinds", "count", "message"),
    [
        (None, 4, "--channels image,mask,mask,mask"),
        (["image", "mask"], 3, "the network has 3"),
        (["image", "depth"], 2, "give image or mask"),
        (["mask", "mask"], 2, "at least one image"),
    ],
)
def test_channels_that_do_not_suit(kinds: list[str] | None, count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline_channels(kinds, count, None)


def test_what_cannot_be_exported(
    stack: Stack, tmp_path: Path, denoiser_run: tuple[Path, Denoiser]
) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        export_checkpoint(tmp_path, "x", stack, {}, None)
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, {"average": {"w": torch.zeros(1)}}, {"task": {"kind": "other"}})
    with pytest.raises(UserError, match="holds no denoiser or segmenter"):
        export_checkpoint(other, "x", stack, {}, None)
    with pytest.raises(UserError, match="no masks found"):
        export_checkpoint(denoiser_run[0], "x", replace(stack, masks=None), {}, None)
    small = Stack(stack.images[:, :3], stack.labels()[:, :3], stack.names, "test")
    with pytest.raises(UserError, match="smaller than 4 pixels"):
        export_checkpoint(denoiser_run[0], "x", small, {}, None)
    with pytest.raises(UserError, match="41 steps asked for; this model takes 1 to 40"):
        export_checkpoint(denoiser_run[0], "x", stack, {}, 41)
    with pytest.raises(UserError, match="--pixel-size goes with a segmenter"):
        export_checkpoint(denoiser_run[0], "x", stack, {}, None, 5.0)
    for source, pipeline in ((None, None), (tmp_path, tmp_path)):
        with pytest.raises(UserError, match="give one thing to export"):
            prepare(source, pipeline, "x")
    with pytest.raises(UserError, match="--channels goes with --from-diffusers"):
        prepare(tmp_path, None, "x", channels="image,mask")


@pytest.mark.parametrize("text", ["{", "[1]", None])
def test_metrics_files_that_hold_no_metrics(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "metrics.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"metrics.json: (cannot be read|holds no named values)"):
        exports.read_metrics(path)


def test_export_verified_on_real_slices(
    epfl: Path, denoiser_run: tuple[Path, Denoiser], tmp_path: Path
) -> None:
    real = read_stack(epfl).select([0, 1])
    bundle = export_bundle(
        export_checkpoint(denoiser_run[0], "small", real, {}, None), tmp_path / "bundle"
    )
    inputs = bundle.manifest.verification["inputs"]
    assert inputs == "2 crops of 64 x 64 pixels from training0000, training0001"
