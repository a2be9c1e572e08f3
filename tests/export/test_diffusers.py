from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from engines.errors import UserError
from export.diffusers import load_pipeline


def save(folder: Path, scheduler: dict[str, Any] | None = None, **unet: Any) -> Path:
    values: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "add_attention": False,
    }
    network = UNet2DModel(**{**values, **unet})
    DDPMPipeline(network, DDPMScheduler(**(scheduler or {}))).save_pretrained(folder)
    return folder


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_network_and_schedule_are_those_of_the_pipeline(tmp_path: Path) -> None:
    settings = {
        "num_train_timesteps": 30,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "variance_type": "fixed_small_log",
        "rescale_betas_zero_snr": True,
        "clip_sample_range": 2.0,
    }
    pipeline = load_pipeline(save(tmp_path / "p", settings, sample_size=(8, 16)))
    original = DDPMPipeline.from_pretrained(tmp_path / "p", low_cpu_mem_usage=False)
    np.testing.assert_array_equal(
        pipeline.alphas_cumprod, original.scheduler.alphas_cumprod.numpy().astype(np.float64)
    )
    assert pipeline.alphas_cumprod[-1] == 0
    assert (pipeline.prediction, pipeline.variance) == ("v_prediction", "fixed_small")
    assert (pipeline.channels, pipeline.size, pipeline.multiple) == (3, (8, 16), 2)
    assert pipeline.clip == 2.0
    x, t = torch.randn(2, 3, 8, 16), torch.tensor([0, 29])
    with torch.no_grad():
        expected = original.unet(x, t).sample
        torch.testing.assert_close(pipeline.module(x, t.float()), expected)


def test_learned_timestep_embeddings_take_float_timesteps(tmp_path: Path) -> None:
    folder = save(tmp_path / "p", time_embedding_type="learned", num_train_timesteps=1000)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.isfinite(load_pipeline(folder).module(x, torch.tensor([7.0]))).all()


def test_pipeline_without_clipping(tmp_path: Path) -> None:
    assert load_pipeline(save(tmp_path / "p", {"clip_sample": False})).clip is None


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"variance_type": "learned"}, "'learned'; accepted: fixed_small, fixed_small_log, fix"),
        ({"variance_type": "fixed_large_log"}, "'fixed_large_log'; accepted"),
        ({"thresholding": True}, "dynamic thresholding"),
        ({"prediction_type": "flow"}, "'flow'; accepted: epsilon, sample, v_prediction"),
    ],
)
def test_sampling_that_emfast_cannot_do_is_refused(
    tmp_path: Path, scheduler: dict[str, Any], message: str
) -> None:
    folder = save(tmp_path / "p")
    edit(folder / "scheduler" / "scheduler_config.json", **scheduler)
    with pytest.raises(UserError, match=message):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"out_channels": 6}, "turns 3 channels into 6"),
        ({"num_class_embeds": 4}, "needs a class"),
        ({"sample_size": None}, "no sample_size"),
    ],
)
def test_networks_that_emfast_cannot_run_are_refused(
    tmp_path: Path, unet: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_pipeline(save(tmp_path / "p", **unet))


def test_folders_that_are_no_ddpm_pipeline(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a diffusers pipeline \(no model_index.json\)"):
        load_pipeline(tmp_path / "missing")
    folder = save(tmp_path / "p")
    original = DDPMPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    DDPMPipeline(original.unet, DDIMScheduler()).save_pretrained(tmp_path / "ddim")
    with pytest.raises(UserError, match="holds UNet2DModel and DDIMScheduler; accepted"):
        load_pipeline(tmp_path / "ddim")
    (folder / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="not the index of a DDPM pipeline"):
        load_pipeline(folder)


def test_truncated_weights(tmp_path: Path) -> None:
    folder = save(tmp_path / "p")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="diffusers cannot read it"):
        load_pipeline(folder)


def test_missing_diffusers_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "p")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'emfast\[diffusers\]'"):
        load_pipeline(folder)
