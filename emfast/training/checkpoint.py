"""Checkpoints: safetensors files (no pickle) that hold all that a run needs to go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from engines.errors import UserError
from engines.files import atomic_write


def save_checkpoint(path: Path, groups: dict[str, dict[str, Tensor]], meta: dict[str, Any]) -> None:
    """Write named groups of tensors and JSON-ready ``meta`` to one file, whole or not at all."""
    tensors = {
        f"{group}/{name}": tensor.detach().contiguous()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    with atomic_write(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"emfast": json.dumps(meta)})
        except SafetensorError as error:
            raise UserError(
                f"{path}: cannot be written ({error}); with room there, the same command goes on "
                "from the last checkpoint"
            ) from None


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote.

    Raises:
        UserError: a missing or damaged file, or one that another program wrote.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such checkpoint; give the folder of a run that emfast train wrote, or its "
            "latest.safetensors"
        )
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 - not a dict
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: is not a whole safetensors file ({error}); copy it again, or remove it to "
            "train from the beginning"
        ) from None
    if "emfast" not in metadata:
        raise UserError(f"{path}: was not written by emfast train")
    return groups, json.loads(metadata["emfast"])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as flat named tensors."""
    return {
        f"{index}/{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` took."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # Fused optimizers walk through memory: moments must be laid out as their weights are.
            tensor = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def restore_module(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load weights into a module; :class:`UserError` where they do not fit."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        message = " ".join(str(error).split())
        raise UserError(f"{path}: its weights do not fit the network ({message[:300]})") from None
