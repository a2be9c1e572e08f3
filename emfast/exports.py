"""From a checkpoint or a diffusers pipeline to a verified bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from emfast import __version__
from emfast.channels import Channel, encode, symmetric_channels
from emfast.data.sample import read_sample
from emfast.data.stack import Stack, read_stack
from emfast.diffusion.schedule import Prediction, Schedule
from emfast.diffusion.spec import DEEP_FEATURES, DenoiserSpec
from emfast.models.denoiser import Denoiser, DenoiserConfig
from emfast.models.folded import FoldedDenoiserWithFeatures
from emfast.models.merged_unet import MergedUNet
from emfast.models.unet import UNet
from emfast.quantization import (
    denoiser_calibration,
    labels_check,
    segmenter_calibration,
    set_check,
)
from emfast.segmentation.preprocessing import SegmenterSpec, normalize
from emfast.training.initial import load_trained
from emfast.verification import (
    DENOISER,
    SEGMENTER,
    crops,
    noisy_batches,
    trajectory_check,
)
from engines.bundle import Manifest, TensorSpec
from engines.errors import UserError
from export.bundle import Export
from export.diffusers import load_pipeline
from export.verify import output_check


def prepare(
    source: Path | None,
    pipeline: Path | None,
    name: str,
    channels: str | None = None,
    data: Path | None = None,
    metrics: dict[str, Any] | None = None,
    trajectory_steps: int | None = None,
    pixel_size: float | None = None,
) -> Export:
    """Prepare the export of a checkpoint or a diffusers pipeline.

    Args:
        source: for :func:`export_checkpoint`.
        pipeline: for :func:`export_diffusers`, instead of ``source``.
        name: of the model, for people.
        channels: of a diffusers pipeline, as in "image,image,mask".
        data: a stack with masks to verify on; the sample slice by default.
        metrics: measured scores for the manifest.
        trajectory_steps, pixel_size: as for :func:`export_checkpoint`.

    Raises:
        UserError: neither or both sources, channels without a pipeline, or as those functions.
    """
    if (source is None) == (pipeline is None):
        raise UserError(
            "give one thing to export: a run's folder, a checkpoint, or --from-diffusers FOLDER"
        )
    if channels is not None and pipeline is None:
        raise UserError("--channels goes with --from-diffusers; a checkpoint knows its channels")
    stack = read_sample() if data is None else read_stack(data)
    if pipeline is not None:
        if pixel_size is not None:
            raise UserError("--pixel-size goes with a segmenter; a denoiser takes none")
        kinds = None if channels is None else channels.split(",")
        return export_diffusers(pipeline, name, kinds, stack, metrics or {}, trajectory_steps)
    assert source is not None
    return export_checkpoint(source, name, stack, metrics or {}, trajectory_steps, pixel_size)


def export_checkpoint(
    source: Path,
    name: str,
    stack: Stack,
    metrics: dict[str, Any],
    trajectory_steps: int | None,
    pixel_size: float | None = None,
) -> Export:
    """Prepare the export of what ``emfast train`` wrote, with its averaged weights.

    Args:
        source: a run's folder or a checkpoint.
        name: of the model, for people.
        stack: slices with masks to verify on.
        metrics: measured scores for the manifest.
        trajectory_steps: steps of the sampling that a denoiser is verified with; all of its
            schedule's by default.
        pixel_size: edge of the training images' pixels in nm; for a segmenter.

    Raises:
        UserError: no checkpoint, a damaged one, slices that do not suit, or a denoiser's pixel
            size.
    """
    trained = load_trained(source, "denoiser", "segmenter")
    task = trained.task
    facts = {"name": name, "training": trained.meta, "metrics": metrics}
    if task["kind"] == "segmenter":
        unet = UNet(**task["network"])
        trained.restore(unet)
        spec = replace(SegmenterSpec.from_dict(task["model"]), pixel_size=pixel_size)
        return _segmenter(unet, spec, stack, facts)
    if pixel_size is not None:
        raise UserError("--pixel-size goes with a segmenter; a denoiser takes none")
    network = Denoiser(DenoiserConfig.from_dict(task["network"]))
    trained.restore(network)
    side = max(crop for crop, _ in trained.meta["settings"]["crops"])
    denoiser = DenoiserSpec(
        schedule=Schedule.from_dict(task["schedule"]),
        channels=tuple(Channel.from_dict(channel) for channel in task["channels"]),
        variance="fixed_small",
        clip=True,
        size=(side, side),
    )
    return _denoiser(
        network.eval(),
        FoldedDenoiserWithFeatures(network),
        network.multiple,
        denoiser,
        stack,
        facts,
        trajectory_steps,
        fp32_module=FoldedDenoiserWithFeatures(network, merged=True),
        inner=(DEEP_FEATURES,),
    )


def export_diffusers(
    folder: Path,
    name: str,
    kinds: Sequence[str] | None,
    stack: Stack,
    metrics: dict[str, Any],
    trajectory_steps: int | None,
) -> Export:
    """Prepare the export of a ``UNet2DModel`` and ``DDPMScheduler`` that diffusers saved.

    Args:
        folder: that ``DDPMPipeline.save_pretrained`` wrote.
        name: of the model, for people.
        kinds: "image" or "mask" for each channel, all from -1 to 1; by default (image, mask) for
            2 channels and (image, image, mask), the seed paper's RGB pairs, for 3.
        stack, metrics, trajectory_steps: as for :func:`export_checkpoint`.

    Raises:
        UserError: no such pipeline, one that emfast's sampler cannot run as diffusers does, or
            channels or slices that do not suit.
    """
    pipeline = load_pipeline(folder)
    channels = pipeline_channels(kinds, pipeline.channels, pipeline.clip)
    spec = DenoiserSpec(
        schedule=Schedule(
            pipeline.alphas_cumprod, cast(Prediction, pipeline.prediction), pipeline.schedule
        ),
        channels=channels,
        variance=pipeline.variance,
        clip=pipeline.clip is not None,
        size=pipeline.size,
    )
    training = {
        "source": f"a pipeline that diffusers {pipeline.version} saved",
        "sampling": "all timesteps, as diffusers with as many steps as it was trained with; with "
        f"fewer, emfast takes trailing timesteps and diffusers {pipeline.spacing} ones",
    }
    facts = {"name": name, "training": training, "metrics": metrics}
    module = pipeline.module
    return _denoiser(module, module, pipeline.multiple, spec, stack, facts, trajectory_steps)


def pipeline_channels(
    kinds: Sequence[str] | None, count: int, clip: float | None
) -> tuple[Channel, ...]:
    """The channels of a diffusers pipeline.

    Args:
        kinds: "image" or "mask" for each channel, or None for the default.
        count: channels that the network has.
        clip: largest magnitude of x, 1 if None.

    Raises:
        UserError: kinds that do not suit the network, or none given where there is no default.
    """
    if kinds is None and count not in (2, 3):
        raise UserError(
            f"the network has {count} channels; say what they hold, for example "
            f"--channels {','.join(['image'] + ['mask'] * (count - 1))}"
        )
    kinds = ["image"] * (count - 1) + ["mask"] if kinds is None else list(kinds)
    if len(kinds) != count or set(kinds) - {"image", "mask"} or "image" not in kinds:
        raise UserError(
            f"channels {','.join(kinds)}: the network has {count}; give image or mask for each, "
            "and at least one image"
        )
    images = kinds.count("image")
    image, *masks = symmetric_channels(1, count - images)
    chosen = tuple(image if kind == "image" else masks.pop(0) for kind in kinds)
    if clip is None:
        return chosen
    return tuple(replace(channel, clip=(-clip, clip)) for channel in chosen)


def _segmenter(unet: UNet, spec: SegmenterSpec, stack: Stack, facts: dict[str, Any]) -> Export:
    height, width = (size // unet.multiple * unet.multiple for size in stack.images.shape[1:])
    if not height or not width:
        raise UserError(f"{stack.source}: slices are smaller than {unet.multiple} pixels")
    x = normalize(stack.images[:1], spec.normalization)[..., :height, :width]
    half = height // 2 // unet.multiple * unet.multiple or height
    batches = {
        f"{width} x {height} pixels": {"x": np.ascontiguousarray(x)},
        f"2 of {width} x {half} pixels": {
            "x": np.concatenate([x[..., :half, :], x[..., height - half :, :]])
        },
    }
    shape = ("batch", spec.classes, "height", "width")
    checks = [output_check(batches, SEGMENTER)]
    if stack.masks is not None:
        checks.append(labels_check(spec, stack, unet.multiple))
    unet.eval()
    network = nn.Sequential(unet, nn.Sigmoid()).eval()
    return Export(
        reference=network,
        module=network,
        fp32_module=nn.Sequential(MergedUNet(unet), nn.Sigmoid()).eval(),
        example=(torch.zeros(2, 1, 2 * unet.multiple, 3 * unet.multiple),),
        manifest=Manifest(
            kind="segmenter",
            emfast=__version__,
            inputs=(
                TensorSpec("x", "float32", ("batch", 1, "height", "width"), "normalised greys"),
            ),
            outputs=(
                TensorSpec("probability", "float32", shape, "probability of each class, 0 to 1"),
            ),
            multiple=unet.multiple,
            graphs={},
            model=spec.to_dict(),
            **facts,
        ),
        calibration=segmenter_calibration(spec, stack, unet.multiple),
        checks=tuple(checks),
        verified_on=f"slice {stack.names[0]}",
    )


def _denoiser(
    reference: nn.Module,
    module: nn.Module,
    multiple: int,
    spec: DenoiserSpec,
    stack: Stack,
    facts: dict[str, Any],
    trajectory_steps: int | None,
    fp32_module: nn.Module | None = None,
    inner: tuple[str, ...] = (),
) -> Export:
    count = len(spec.channels)
    images, masks, where = crops(stack, spec.size, multiple)
    x0 = encode(spec.channels, images, masks)
    shape = ("batch", count, "height", "width")
    target = {
        "epsilon": "the noise",
        "sample": "the clean channels",
        "v_prediction": "the velocity, sqrt(alphas_cumprod) noise - sqrt(1 - alphas_cumprod) x0",
    }[spec.schedule.prediction]
    return Export(
        reference=reference.eval(),
        module=module.eval(),
        fp32_module=None if fp32_module is None else fp32_module.eval(),
        example=(torch.zeros(2, count, 2 * multiple, 3 * multiple), torch.zeros(2)),
        manifest=Manifest(
            kind="denoiser",
            emfast=__version__,
            inputs=(
                TensorSpec("x", "float32", shape, "noisy standardised channels"),
                TensorSpec(
                    "timestep", "float32", ("batch",), f"whole, 0 to {spec.schedule.steps - 1}"
                ),
            ),
            outputs=(TensorSpec("prediction", "float32", shape, target),),
            multiple=multiple,
            graphs={},
            model=spec.to_dict(),
            **facts,
        ),
        calibration=denoiser_calibration(spec, x0, where),
        checks=(
            output_check(noisy_batches(spec, x0, multiple), DENOISER),
            trajectory_check(spec, trajectory_steps),
            set_check(spec, trajectory_steps),
        ),
        verified_on=where,
        inner=inner,
    )


def read_metrics(path: Path | None) -> dict[str, Any]:
    """Scores for a manifest from a JSON file; none without a file.

    Raises:
        UserError: a file that cannot be read, or that holds something else than named values.
    """
    if path is None:
        return {}
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(metrics, dict):
        raise UserError(f'{path}: holds no named values; expected {{"dice": 0.9, ...}}')
    return metrics


def read_notes(path: Path | None) -> str:
    """The end of a card from a Markdown file; empty without a file."""
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
