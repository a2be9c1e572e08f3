"""The interface of engines that run on memory of the device, beside :mod:`engines.engine`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from engines.cuda import Stream
from engines.engine import EngineInfo


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
