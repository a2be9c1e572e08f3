"""A TensorRT engine on device memory and a stream that the caller owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engines.bundle import TensorSpec
from engines.cuda import DeviceBuffer, Stream
from engines.device import DeviceTensor
from engines.engine import EngineInfo
from engines.tensorrt.context import Contexts
from engines.tensorrt.library import failure


class ContextBinding:
    """An execution context for one set of shapes and addresses; it owns its scratch memory.

    Raises:
        OutOfDeviceMemoryError: there is no memory for the scratch.
        UserError: TensorRT refuses the shapes.
    """

    replays = False

    def __init__(
        self,
        contexts: Contexts,
        inputs: Sequence[TensorSpec],
        info: EngineInfo,
        tensors: Mapping[str, DeviceTensor],
        stream: Stream,
    ) -> None:
        self._info, self._stream = info, stream
        self._context = contexts.open()
        for spec in inputs:
            shape = tensors[spec.name].shape
            if not self._context.set_input_shape(spec.name, shape):
                raise failure(info.engine, f"refuses the shape {shape} of {spec.name}")
        self._scratch = DeviceBuffer(max(contexts.scratch_size(self._context), 1))
        for name, tensor in tensors.items():
            self._context.set_tensor_address(name, tensor.address)
        self._context.set_device_memory(self._scratch.address, self._scratch.size)

    @property
    def capturable(self) -> bool:
        # Only TensorRT-RTX has this question; TensorRT answers by failing.
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(self._stream.handle))

    def enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise failure(self._info.engine, "cannot run the engine")

    def close(self) -> None:
        del self._context
        self._scratch.close()
