"""The interface of every engine: arrays in, arrays out, and the truth about what ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from engines.errors import UserError

Array = npt.NDArray[np.generic]


class EngineUnavailableError(UserError):
    """An engine that cannot run here; the message is the reason."""


@dataclass(frozen=True)
class EngineInfo:
    """What really runs.

    Attributes:
        engine: its name, as ``--engine`` takes it.
        precision: of the graph.
        device: in words, "CPU, 2 threads".
        version: of the runtime, "onnxruntime 1.32.0".
    """

    engine: str
    precision: str
    device: str
    version: str

    def __str__(self) -> str:
        return f"{self.engine} ({self.version}), {self.precision}, {self.device}"

    def to_dict(self) -> dict[str, str]:
        """JSON-ready values."""
        return asdict(self)


class Engine(Protocol):
    """Runs one graph of a bundle. A context manager: leaving it frees the device."""

    @property
    def info(self) -> EngineInfo:
        """Engine, precision, device and version."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Evaluate the graph.

        Args:
            inputs: one contiguous array for each input of the bundle's manifest.

        Returns:
            One new array for each output of the manifest; the caller may overwrite it.
        """

    def close(self) -> None:
        """Free the device."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


@runtime_checkable
class DivisibleEngine(Engine, Protocol):
    """An engine that can also start in the middle of its graph."""

    def divide(self, tensor: str) -> tuple[Engine, Engine]:
        """Two engines on the same device, which are closed on their own.

        Args:
            tensor: name of a tensor inside the graph.

        Returns:
            One that gives ``tensor`` beside the outputs, and one that takes it beside the inputs
            and computes only what else the outputs need.

        Raises:
            UserError: the graph has no such tensor.
        """
