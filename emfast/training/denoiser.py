"""Training the denoiser."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from emfast.channels import clip_range, decode, encode, standard_channels, symmetric_channels
from emfast.data.stack import Stack
from emfast.data.summary import summarize
from emfast.data.tiles import cut_tiles, paper_windows
from emfast.diffusion.samplers import DDPM
from emfast.diffusion.sampling import sample
from emfast.diffusion.schedule import Schedule, cosine_schedule, linear_schedule
from emfast.models.denoiser import Denoiser, DenoiserConfig, deepen
from emfast.pictures import contact_sheet
from emfast.training.batches import CROPS, TIMESTEPS, epoch_batch, generator, random_crops
from emfast.training.device import autocast, memory_format
from emfast.training.initial import Trained, load_trained
from emfast.training.presets import DenoiserSettings
from emfast.training.trainer import Trainer
from engines.errors import UserError
from engines.files import atomic_write

SAMPLE_COUNT = 4
SAMPLE_STEPS = 50
SAMPLE_SIDE = 256


def make_schedule(settings: DenoiserSettings) -> Schedule:
    """The schedule that a preset names."""
    if settings.schedule == "linear":
        return linear_schedule(settings.steps, settings.prediction)
    return cosine_schedule(settings.steps, settings.prediction)


def coarse_error(difference: Tensor) -> Tensor:
    """Squared means of a difference over squares of 2, 4, 8... pixels, times the squares' side.

    An error of a wavelength of n pixels weighs about n times what it does in the mean squared
    error. The prediction that makes both smallest is the same, the mean of what is possible.

    Args:
        difference: float32 (batch, channels, height, width). Squares are doubled as long as they
            tile it.

    Returns:
        float32 (channels,), the sum over the sizes, each averaged over batch and squares.
    """
    total, side = difference.new_zeros(difference.shape[1]), 1
    while all(length % 2 == 0 for length in difference.shape[2:]):
        difference, side = functional.avg_pool2d(difference, 2), 2 * side
        total = total + side * difference.square().mean(dim=(0, 2, 3))
    return total


class DenoiserTask:
    """Draws image and mask together: v or noise prediction with a squared error.

    Args:
        settings: of the training.
        stack: the training slices with their masks.
        device: to train on.
        initial: as for :func:`train_denoiser`.
    """

    def __init__(
        self,
        settings: DenoiserSettings,
        stack: Stack,
        device: torch.device,
        initial: Trained | None = None,
    ) -> None:
        self.settings = settings
        self.device = device
        self._layout = memory_format(device.type, settings.precision)
        self.images, self.masks = stack.images, stack.labels()
        self.report_every = settings.sample_every
        if settings.epochs:
            height, width = stack.images.shape[1:]
            stack = cut_tiles(stack, paper_windows(height, width)).stack()
            self.images, self.masks = stack.images, stack.labels()
        if settings.symmetric:
            self.channels = symmetric_channels(1, 1)
        else:
            greys = summarize(stack)
            self.channels = standard_channels(
                round(greys.grey_mean, 2), round(greys.grey_deviation, 2)
            )
        self.schedule = make_schedule(settings)
        self.config = DenoiserConfig(
            in_channels=len(self.channels),
            widths=settings.widths,
            blocks=settings.blocks,
            patch=settings.patch,
            steps=settings.steps,
        )
        torch.manual_seed(settings.seed)
        network = Denoiser(self.config)
        alphas = torch.from_numpy(self.schedule.alphas_cumprod)
        if settings.prediction == "v_prediction":
            network.precondition(alphas)
        if initial is not None:
            self._start_from(initial, network)
        self.multiple = network.multiple
        self.network: nn.Module = network
        alphas = alphas.float().to(device)
        self._signal, self._sigma = alphas.sqrt(), (1 - alphas).sqrt()

    def _start_from(self, initial: Trained, network: Denoiser) -> None:
        """Give the new network trained weights, for the same prediction at the same timesteps."""
        described = json.loads(json.dumps(self.describe()))
        changed = [key for key in ("network", "schedule") if initial.task[key] != described[key]]
        if changed == ["network"] and _is_shallower(initial.task["network"], self.config):
            initial = replace(initial, weights=deepen(initial.weights, network))
        elif changed:
            raise UserError(
                f"{initial.path}: was trained with another {' and '.join(changed)}; give its "
                "--preset"
            )
        initial.restore(network)

    def _batch(self, iteration: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        side, batch = self.settings.crops[iteration % len(self.settings.crops)]
        if self.settings.epochs:
            chosen = epoch_batch(len(self.images), batch, self.settings.seed, iteration)
            return self.images[chosen], self.masks[chosen]
        rng = generator(self.settings.seed, iteration, CROPS)
        symmetries = self.settings.symmetries
        crops = random_crops(self.images, self.masks, side, batch, rng, symmetries)
        return crops.images, crops.masks

    def losses(self, iteration: int) -> dict[str, Tensor]:
        images, masks = self._batch(iteration)
        x0 = torch.from_numpy(encode(self.channels, images, masks)).to(self.device)
        # Timesteps are spread evenly over the batch, which lowers the variance of the loss.
        rng = generator(self.settings.seed, iteration, TIMESTEPS)
        spread = (rng.random() + np.arange(len(x0))) / len(x0) % 1
        skewed = 1 - (1 - spread) ** self.settings.skew[iteration % len(self.settings.crops)]
        # Close to 1 it rounds to 1, which is no timestep.
        index = np.minimum(skewed * self.settings.steps, self.settings.steps - 1)
        timestep = torch.from_numpy(index.astype(np.int64))
        timestep = timestep.to(self.device)
        noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32)).to(self.device)
        signal, sigma = (v[timestep][:, None, None, None] for v in (self._signal, self._sigma))
        target = noise
        if self.settings.prediction == "v_prediction":
            target = signal * noise - sigma * x0
        x = (signal * x0 + sigma * noise).contiguous(memory_format=self._layout)
        difference = self.network(x, timestep.float()) - target
        error = difference.square().mean(dim=(0, 2, 3))
        kinds = [c.kind for c in self.channels]
        image = error[[i for i, k in enumerate(kinds) if k == "image"]].mean()
        mask = error[[i for i, k in enumerate(kinds) if k == "mask"]].mean()
        weights = error.new_tensor(
            [self.settings.mask_weight if kind == "mask" else 1.0 for kind in kinds]
        )
        if self.settings.coarse:
            error = error + self.settings.coarse * coarse_error(difference)
        return {"loss": (weights * error).sum() / weights.sum(), "image": image, "mask": mask}

    def after_step(self) -> None:
        assert isinstance(self.network, Denoiser)
        self.network.normalize_weights()

    def report(self, network: nn.Module, iteration: int, folder: Path) -> dict[str, float]:
        """Draw a few images with the averaged network, so that over-training can be seen."""
        # The sampler is numpy on the host; the same four seeds at every report.
        sampler = DDPM(
            self.schedule, min(SAMPLE_STEPS, self.settings.steps), clip=clip_range(self.channels)
        )

        def denoise(
            x: np.ndarray[Any, Any], timestep: np.ndarray[Any, Any]
        ) -> np.ndarray[Any, Any]:
            with torch.no_grad(), autocast(self.device.type, self.settings.precision):
                inputs = torch.from_numpy(x).to(self.device, memory_format=self._layout)
                prediction = network(inputs, torch.from_numpy(timestep).to(self.device))
            result: np.ndarray[Any, Any] = prediction.float().cpu().numpy().copy()
            return result

        shape = (len(self.channels), SAMPLE_SIDE, SAMPLE_SIDE)
        images, masks = decode(
            self.channels, sample(denoise, sampler, 0, range(SAMPLE_COUNT), shape)
        )
        with atomic_write(folder / f"{iteration:07d}.png") as temporary:
            contact_sheet(images, masks, columns=SAMPLE_COUNT).save(temporary)
        return {
            "grey_mean": float(images.mean()),
            "grey_deviation": float(images.std()),
            "mask_area": float((masks > 0).mean()),
        }

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "denoiser",
            "network": self.config.to_dict(),
            "schedule": self.schedule.to_dict(),
            "channels": [c.to_dict() for c in self.channels],
        }


def _is_shallower(network: dict[str, Any], config: DenoiserConfig) -> bool:
    """Whether a network lacks the coarsest level of another, and nothing else."""
    fewer = DenoiserConfig.from_dict(network)
    lacking = replace(config, widths=config.widths[:-1], blocks=config.depths[:-1])
    return replace(fewer, blocks=fewer.depths) == lacking


def train_denoiser(
    settings: DenoiserSettings,
    stack: Stack,
    data: dict[str, Any],
    folder: Path,
    device: str,
    initial: Path | None = None,
) -> Trainer:
    """Train a denoiser, or go on with the run that ``folder`` holds.

    Args:
        settings: a preset, maybe with values overridden.
        stack: the training slices with their masks; held-out slices are not among them.
        data: JSON-ready description of ``stack``, kept in the checkpoint.
        folder: of the run.
        device: "cpu" or "cuda".
        initial: folder or checkpoint of a denoiser's run, whose averaged weights this one starts
            from, as for fine-tuning; the optimizer starts anew. Its network may lack this one's
            coarsest level. Random weights by default.

    Returns:
        The trainer, after its last iteration.

    Raises:
        UserError: settings or data that do not fit, or a loss that is not finite.
    """
    where = torch.device(device)
    trained = None if initial is None else load_trained(initial, "denoiser")
    task = DenoiserTask(settings, stack, where, trained)
    settings = task.settings = settings.complete(len(task.images), task.multiple)
    if trained is not None:
        data = {**data, "initial": trained.origin()}
    trainer = Trainer(task, settings, folder, where, data)
    trainer.run()
    return trainer
