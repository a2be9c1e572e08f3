"""The interface of every engine: arrays in, arrays out, and the truth about what ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from engines.errors import UserError

if TYPE_CHECKING:
    from engines.cuda import Stream

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


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor in the memory of the device.

    Attributes:
        address: of its first element.
        dtype: numpy's name, that of the bundle's manifest.
        shape: contiguous.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]


class Binding(Protocol):
    """A graph whose inputs and outputs lie at fixed places on the device.

    Attributes:
        capturable: whether :meth:`enqueue`, once it has run, may be captured in a CUDA graph.
        replays: whether the runtime sees to graphs by itself, and must not be captured.
    """

    @property
    def capturable(self) -> bool: ...

    @property
    def replays(self) -> bool: ...

    def enqueue(self) -> None:
        """Queue one evaluation, and do not wait for it."""

    def close(self) -> None:
        """Free what it holds; its work must be done."""


@runtime_checkable
class DeviceEngine(Protocol):
    """An engine that also reads and writes device memory, in a stream of the caller's."""

    @property
    def info(self) -> EngineInfo: ...

    def bind(self, tensors: Mapping[str, DeviceTensor], stream: Stream) -> Binding:
        """Bind the graph to device memory.

        Args:
            tensors: every input and output of the bundle's manifest; they outlive the binding.
            stream: that evaluations are queued on; it outlives the binding.

        Raises:
            EngineUnavailableError: this engine cannot.
            UserError: a shape that it does not take.
            OutOfDeviceMemoryError: there is no memory for these shapes.
        """
