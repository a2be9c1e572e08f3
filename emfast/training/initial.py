"""Trained weights, read from a run for its export, its scores or another training's beginning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from emfast.training.checkpoint import load_checkpoint, restore_module
from emfast.training.trainer import CHECKPOINT
from engines.bundle import MANIFEST
from engines.errors import UserError
from engines.files import sha256


@dataclass(frozen=True)
class Trained:
    """What a run arrived at.

    Attributes:
        path: of the checkpoint.
        weights: the averaged ones.
        task: what was trained, as its ``describe`` told.
        meta: everything else that the checkpoint tells of the run.
    """

    path: Path
    weights: dict[str, Tensor]
    task: dict[str, Any]
    meta: dict[str, Any]

    def restore(self, network: nn.Module) -> None:
        """Load the weights; :class:`UserError` where they do not fit."""
        restore_module(network, self.weights, self.path)

    def origin(self) -> dict[str, Any]:
        """Facts for the card of a training that starts from here."""
        origin = {"sha256": sha256(self.path)}
        known = ("iteration", "settings", "data", "emfast")
        return origin | {key: self.meta[key] for key in known if key in self.meta}


def load_trained(source: Path, *kinds: str) -> Trained:
    """Read the averaged weights that ``emfast train`` wrote.

    Args:
        source: a run's folder or a checkpoint.
        kinds: that are accepted, of "denoiser" and "segmenter".

    Raises:
        UserError: no checkpoint, a damaged one, or one of another kind.
    """
    if (source / MANIFEST).exists():
        # Its layers are folded into each other: what training needs is gone.
        raise UserError(
            f"{source}: is a bundle; what emfast train wrote is needed, a run's folder or its "
            f"{CHECKPOINT}"
        )
    path = source / CHECKPOINT if source.is_dir() else source
    groups, meta = load_checkpoint(path)
    task = meta.pop("task", {})
    if task.get("kind") not in kinds or "average" not in groups:
        raise UserError(f"{path}: holds no {' or '.join(kinds)} that emfast train wrote")
    return Trained(path, groups["average"], task, meta)
