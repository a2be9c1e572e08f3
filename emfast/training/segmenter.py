"""Training the segmenter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from emfast.data.stack import Stack
from emfast.data.tiles import cut_tiles, paper_windows
from emfast.models.unet import FULL, LIGHT, UNet
from emfast.quality.overlap import Confusion, confusion
from emfast.segmentation.preprocessing import SegmenterSpec, normalize
from emfast.segmentation.tiling import pad
from emfast.training.augmentation import AUGMENTATIONS, augment
from emfast.training.batches import (
    AUGMENTATION,
    CROPS,
    epoch_batch,
    flip_turn,
    generator,
    random_crops,
)
from emfast.training.presets import SegmenterSettings
from emfast.training.trainer import Trainer
from engines.errors import UserError

WIDTHS = {"light": LIGHT, "full": FULL}
VALIDATION_SLICES = 6
LABELS = ("mitochondria",)


def soft_dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice over all pixels of the batch, the mean over classes.

    Args:
        probability, target: (batch, classes, height, width) in [0, 1].
    """
    dims = (0, 2, 3)
    overlap = (probability * target).sum(dims)
    total = probability.sum(dims) + target.sum(dims)
    return 1 - ((2 * overlap + 1) / (total + 1)).mean()


class SegmenterTask:
    """Marks the pixels of each class.

    Args:
        settings: of the training.
        stack: the training slices with their masks.
        held_out: slices that training never sees, to score on, or None.
        device: to train on.
    """

    def __init__(
        self,
        settings: SegmenterSettings,
        stack: Stack,
        held_out: Stack | None,
        device: torch.device,
    ) -> None:
        if settings.network not in WIDTHS:
            raise UserError(f"unknown network {settings.network!r}; accepted: {', '.join(WIDTHS)}")
        self.settings = settings
        self.device = device
        self.report_every = settings.validate_every
        self.spec = SegmenterSpec(
            classes=len(LABELS),
            labels=LABELS,
            normalization="standardize" if settings.standardize else "unit",
            threshold=0.5,
        )
        if settings.epochs:
            height, width = stack.images.shape[1:]
            stack = cut_tiles(stack, paper_windows(height, width)).stack()
        self.stack = stack
        self.masks = stack.labels()
        self.held_out = None
        if held_out is not None:
            count = min(VALIDATION_SLICES, len(held_out))
            self.held_out = held_out.select(
                np.linspace(0, len(held_out) - 1, count).round().astype(int).tolist()
            )
        # Greys of crops are normalised with the statistics of their whole slice, as in use.
        self._mean = stack.images.mean(axis=(1, 2))
        self._deviation = np.maximum(stack.images.std(axis=(1, 2)), 1.0)
        torch.manual_seed(settings.seed)
        self.kwargs = {"classes": self.spec.classes, "widths": WIDTHS[settings.network]}
        network = UNet(self.spec.classes, WIDTHS[settings.network])
        self.multiple = network.multiple
        self.network: nn.Module = network

    def _batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        side, batch = self.settings.crops[iteration % len(self.settings.crops)]
        seed = self.settings.seed
        if self.settings.epochs:
            slices = epoch_batch(len(self.stack), batch, seed, iteration)
            images, masks = self.stack.images[slices], self.masks[slices]
            # The paper's flips and quarter turns.
            symmetries = generator(seed, iteration, CROPS).integers(8, size=len(slices))
            images, masks = (_flip_turn_all(a, symmetries) for a in (images, masks))
        else:
            rng = generator(seed, iteration, CROPS)
            images, masks, slices = random_crops(
                self.stack.images, self.masks, side, batch, rng, True
            )
        if self.spec.normalization == "standardize":
            column = (-1, 1, 1, 1)
            mean, deviation = self._mean[slices], self._deviation[slices]
            x = (images[:, None] - mean.reshape(column)) / deviation.reshape(column)
        else:
            x = normalize(images, "unit")
        labels = np.arange(1, self.spec.classes + 1)[:, None, None]
        target = masks[:, None] == labels
        return (
            torch.from_numpy(x.astype(np.float32)).to(self.device),
            torch.from_numpy(target.astype(np.float32)).to(self.device),
        )

    def losses(self, iteration: int) -> dict[str, Tensor]:
        x, target = self._batch(iteration)
        rng = generator(self.settings.seed, iteration, AUGMENTATION)
        with torch.autocast(self.device.type, enabled=False):
            x, target = augment(x, target, AUGMENTATIONS[self.settings.augment], rng)
        logits = self.network(x.contiguous(memory_format=torch.channels_last)).float()
        dice = soft_dice_loss(torch.sigmoid(logits), target)
        if self.settings.loss == "dice":
            return {"loss": dice}
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target)
        return {"loss": dice + cross_entropy, "dice": dice, "cross_entropy": cross_entropy}

    def after_step(self) -> None:
        """Nothing to do."""

    @torch.no_grad()
    def report(self, network: nn.Module, iteration: int, folder: Path) -> dict[str, float]:
        """Score the averaged network on some held-out slices, pooled over their pixels."""
        if self.held_out is None:
            return {}
        total = Confusion()
        for image, label in zip(self.held_out.images, self.held_out.labels(), strict=True):
            normalized = normalize(image[None], self.spec.normalization)
            x = torch.from_numpy(pad(normalized, self.multiple)).to(self.device)
            logits = network(x.contiguous(memory_format=torch.channels_last))
            logits = logits[:, :, : label.shape[0], : label.shape[1]]
            mask = (logits[0, 0].sigmoid() >= self.spec.threshold).cpu().numpy().astype(np.uint8)
            total += confusion(mask, (label == 1).astype(np.uint8))
        return {"dice": total.dice, "iou": total.iou}

    def describe(self) -> dict[str, Any]:
        return {"kind": "segmenter", "network": self.kwargs, "model": self.spec.to_dict()}


def _flip_turn_all(
    arrays: np.ndarray[Any, Any], symmetries: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    return np.stack([flip_turn(a, int(s)) for a, s in zip(arrays, symmetries, strict=True)])


def train_segmenter(
    settings: SegmenterSettings,
    stack: Stack,
    held_out: Stack | None,
    data: dict[str, Any],
    folder: Path,
    device: str,
) -> Trainer:
    """Train a segmenter, or go on with the run that ``folder`` holds.

    Args:
        settings: a preset, maybe with values overridden.
        stack: the training slices with their masks.
        held_out: slices to score on during training, or None.
        data: JSON-ready description of both, kept in the checkpoint.
        folder: of the run.
        device: "cpu" or "cuda".

    Returns:
        The trainer, after its last iteration.

    Raises:
        UserError: settings or data that do not fit, or a loss that is not finite.
    """
    where = torch.device(device)
    task = SegmenterTask(settings, stack, held_out, where)
    settings = task.settings = settings.complete(len(task.stack), task.multiple)
    trainer = Trainer(task, settings, folder, where, data)
    trainer.run()
    return trainer
