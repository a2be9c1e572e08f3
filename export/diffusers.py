"""Reading a pipeline that diffusers saved: ``UNet2DModel`` with ``DDPMScheduler``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from engines.errors import UserError

INDEX = "model_index.json"
CLASSES = {"unet": "UNet2DModel", "scheduler": "DDPMScheduler"}
PREDICTIONS = ("epsilon", "sample", "v_prediction")
# The same numbers: diffusers takes the square root of the one and half the logarithm of the other.
# Its fixed_large_log is the root of a negative number.
VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
}


@dataclass(frozen=True)
class Pipeline:
    """A denoiser and its schedule.

    Attributes:
        module: (x, timestep) -> prediction; float32 (batch, channels, height, width), float32
            (batch,) and the shape of x.
        channels: of x.
        size: height and width that the pipeline draws.
        multiple: height and width must be divisible by this number.
        alphas_cumprod: float64 (steps,), the scheduler's FP32 numbers.
        prediction: one of :data:`PREDICTIONS`.
        variance: "fixed_small" or "fixed_large".
        clip: largest magnitude of the clean image's estimate while sampling, or None.
        schedule: the scheduler's betas in words.
        spacing: how diffusers would choose timesteps, were there fewer than all.
        version: of diffusers that wrote the folder.
    """

    module: nn.Module
    channels: int
    size: tuple[int, int]
    multiple: int
    alphas_cumprod: npt.NDArray[np.float64]
    prediction: str
    variance: str
    clip: float | None
    schedule: str
    spacing: str
    version: str


class _Unet(nn.Module):
    """The network with a tensor for its output."""

    def __init__(self, unet: nn.Module, integer_timesteps: bool) -> None:
        super().__init__()
        self.unet = unet
        self.integer_timesteps = integer_timesteps

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        t = timestep.long() if self.integer_timesteps else timestep
        (prediction,) = self.unet(x, t, return_dict=False)
        result: Tensor = prediction
        return result


def load_pipeline(folder: Path) -> Pipeline:
    """Read what ``DDPMPipeline.save_pretrained`` wrote.

    Raises:
        UserError: diffusers is not installed, no such pipeline, or one that emfast's sampler
            cannot run as diffusers does.
    """
    index = _read_index(folder)
    diffusers = _import_diffusers()
    options = {"local_files_only": True, "low_cpu_mem_usage": False}
    try:
        scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        unet = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet", **options)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: diffusers cannot read it ({reason})") from None
    _refuse_unet(folder, unet.config)
    _refuse_scheduler(folder, scheduler.config)
    config = scheduler.config
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return Pipeline(
        module=_Unet(unet.eval(), unet.config.time_embedding_type != "positional"),
        channels=unet.config.in_channels,
        size=(height, width),
        multiple=2 ** (len(unet.config.block_out_channels) - 1),
        alphas_cumprod=scheduler.alphas_cumprod.to(torch.float64).numpy(),
        prediction=config.prediction_type,
        variance=VARIANCES[config.variance_type],
        clip=float(config.clip_sample_range) if config.clip_sample else None,
        schedule=_schedule_name(config),
        spacing=config.timestep_spacing,
        version=str(index.get("_diffusers_version", "unknown")),
    )


def _schedule_name(config: Any) -> str:
    zero = ", zero terminal SNR" if config.rescale_betas_zero_snr else ""
    if config.trained_betas is not None:
        return f"diffusers, betas given one by one{zero}"
    return f"diffusers {config.beta_schedule}, {config.beta_start:g} to {config.beta_end:g}{zero}"


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise UserError(
            f"{folder}: is not a diffusers pipeline (no {INDEX}); give the folder that "
            "save_pretrained wrote"
        )
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = {part: index[part][1] for part in CLASSES}
    except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
        raise UserError(f"{path}: is not the index of a DDPM pipeline ({error!r})") from None
    if found != CLASSES:
        raise UserError(
            f"{folder}: holds {' and '.join(found.values())}; "
            f"accepted: {' and '.join(CLASSES.values())}"
        )
    return index


def _import_diffusers() -> ModuleType:
    try:
        import diffusers
    except ImportError as error:
        raise UserError(
            f"diffusers does not load ({error}); install it: pip install 'emfast[diffusers]'"
        ) from None
    module: ModuleType = diffusers
    return module


def _refuse_unet(folder: Path, config: Any) -> None:
    if config.sample_size is None:
        raise UserError(f"{folder}: unet/config.json has no sample_size, the images' side; add it")
    if config.in_channels != config.out_channels:
        raise UserError(
            f"{folder}: the network turns {config.in_channels} channels into "
            f"{config.out_channels}; accepted: as many out as in"
        )
    if config.class_embed_type is not None or config.num_class_embeds is not None:
        raise UserError(
            f"{folder}: the network needs a class beside the image; accepted: networks of image "
            "and timestep alone"
        )


def _refuse_scheduler(folder: Path, config: Any) -> None:
    if config.prediction_type not in PREDICTIONS:
        raise UserError(
            f"{folder}: prediction type {config.prediction_type!r}; "
            f"accepted: {', '.join(PREDICTIONS)}"
        )
    if config.variance_type not in VARIANCES:
        raise UserError(
            f"{folder}: variance type {config.variance_type!r}; accepted: {', '.join(VARIANCES)}"
        )
    if config.thresholding:
        raise UserError(
            f"{folder}: samples with dynamic thresholding, which emfast does not; set "
            "thresholding to false in scheduler_config.json to sample without"
        )
