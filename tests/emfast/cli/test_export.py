from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from typer.testing import CliRunner

from emfast.cli import requirements
from emfast.cli.export import export
from emfast.models.unet import UNet
from emfast.segmentation.preprocessing import SegmenterSpec
from emfast.training.checkpoint import save_checkpoint
from emfast.training.trainer import CHECKPOINT
from engines.bundle import open_bundle
from engines.errors import UserError

app = typer.Typer()
app.command()(export)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "120"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def data(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96), dtype=np.uint8)
    for kind, arrays in (("images", images), ("masks", (images > 200) * np.uint8(255))):
        (tmp_path / "stack" / kind).mkdir(parents=True)
        for i, array in enumerate(arrays):
            Image.fromarray(array).save(tmp_path / "stack" / kind / f"s{i}.png")
    return tmp_path / "stack"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network: dict[str, Any] = {"classes": 1, "widths": [4, 8]}
    spec = SegmenterSpec(1, ("mitochondria",), "standardize", 0.5)
    meta = {
        "iteration": 5,
        "seconds": 1.5,
        "task": {"kind": "segmenter", "network": network, "model": spec.to_dict()},
    }
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run" / CHECKPOINT, {"average": UNet(**network).state_dict()}, meta)
    return tmp_path / "run"


def test_help_shows_an_example() -> None:
    assert "Example: emfast export runs/segmenter --out" in run("--help")


def test_a_run_becomes_a_bundle(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    metrics, notes = tmp_path / "metrics.json", tmp_path / "notes.md"
    metrics.write_text(json.dumps({"dice": 0.91}))
    notes.write_text("## Limits\n\nOne tissue.\n")
    out = tmp_path / "bundles" / "net"
    output = run(checkpoint, "--out", out, "--data", data, "--metrics", metrics, "--notes", notes)
    bundle = open_bundle(out, "segmenter")
    assert bundle.precisions == ("fp32", "fp16")
    assert bundle.manifest.name == "net"
    assert bundle.manifest.metrics == {"dice": 0.91}
    assert bundle.manifest.training == {"iteration": 5, "seconds": 1.5}
    assert (out / "README.md").read_text().endswith("One tissue.\n")
    # The numbers and their limits are printed.
    assert "reference: torch" in output
    assert "fp16: onnxruntime-cpu" in output
    rows = [line for line in output.splitlines() if "maximum error" in line]
    assert len(rows) == 2 * len(bundle.manifest.verification["precisions"])
    assert all("at most" in row for row in rows)
    assert f"segmenter exported to {out}" in output.replace("\n", "")


def test_options_reach_the_bundle(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "half"
    options = ("--precision", "fp16", "--half-io", "--name", "mine", "--data", data)
    run(checkpoint / CHECKPOINT, "--out", out, *options, "--pixel-size", "5")
    manifest = open_bundle(out).manifest
    assert manifest.model["pixel_size"] == 5
    assert (manifest.name, list(manifest.graphs)) == ("mine", ["fp16"])
    assert manifest.inputs[0].dtype == manifest.outputs[0].dtype == "float16"


def test_a_diffusers_pipeline_becomes_a_bundle(data: Path, tmp_path: Path) -> None:
    unet = UNet2DModel(
        sample_size=32,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=20)).save_pretrained(tmp_path / "saved")
    options = ("--channels", "mask,image,mask", "--data", data, "--trajectory-steps", "5")
    output = run("--from-diffusers", tmp_path / "saved", "--out", tmp_path / "bundle", *options)
    assert "5 steps: PSNR of the image" in output
    manifest = open_bundle(tmp_path / "bundle", "denoiser").manifest
    assert [c["kind"] for c in manifest.model["channels"]] == ["mask", "image", "mask"]
    assert manifest.model["schedule"]["steps"] == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one thing to export"),
        (("missing.safetensors",), "no such checkpoint"),
        (("--from-diffusers", "missing"), "is not a diffusers pipeline"),
        (("run", "--precision", "int4"), "accepted: fp32, fp16, int8"),
        (("run", "--half-io"), "add --precision fp16"),
        (("run", "--metrics", "missing.json"), "missing.json: cannot be read"),
        (("run", "--notes", "missing.md"), "missing.md: cannot be read"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: tuple[str, ...],
    message: str,
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        run(*arguments, "--out", "bundle", "--data", data)
    assert "\n" not in str(error.value)
    assert not Path("bundle").exists()


def test_without_torch_the_extra_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> object:
        return None if name == "torch" else importlib.util.find_spec(name)

    monkeypatch.setattr(requirements, "find_spec", find)
    with pytest.raises(UserError, match=r"needs torch; install it: pip install 'emfast\[train\]'"):
        run(checkpoint, "--out", tmp_path / "bundle")
