"""The sampling loop on a GPU: between the first noise and the last image nothing leaves it."""

from __future__ import annotations

import ctypes
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from importlib.resources import files
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from emfast.diffusion.noise import check_seed, normal_noise
from emfast.diffusion.samplers import Sampler
from emfast.diffusion.samplers.sampler import Array
from emfast.diffusion.schedule import Schedule
from engines.bundle import TensorSpec
from engines.cuda import DeviceBuffer, Event, Graph, PinnedBuffer, Stream, open_device
from engines.device import DeviceEngine, DeviceTensor
from engines.engine import EngineUnavailableError
from engines.errors import UserError
from engines.kernels import THREADS, Kernel

# The structs of step.cu.
RUN = np.dtype([("seed", "u8"), ("step", "u4"), ("finished", "u4")])
ROW = np.dtype(
    [
        ("x_coefficient", "f4"),
        ("prediction_coefficient", "f4"),
        ("x0_weight", "f4"),
        ("x_weight", "f4"),
        ("previous_weight", "f4"),
        ("deviation", "f4"),
        ("timestep", "u4"),
        ("keeps", "u4"),
    ]
)
TYPES = {"prediction": 1, "x": 2, "timestep": 4}
# Steps that are queued before the host looks how far the device is: enough that the device never
# waits for the host.
QUEUED = 20
# What a thread of the kernel does in a turn: the elements that one block of Philox is for.
ELEMENTS = 8
# Between the device's noise and the host's, whose logarithm, sine and cosine round differently.
NOISE_TOLERANCE = 1e-5

_log = logging.getLogger(__name__)


def table(sampler: Sampler) -> npt.NDArray[np.void]:
    """A sampler's rows as the kernel reads them.

    Returns:
        :data:`ROW` (steps + 2,): the noise that sampling starts from, the steps, and a row of
        zeros, since the kernel looks one ahead for the timestep.
    """
    steps = sampler.steps
    rows = np.zeros(len(steps) + 2, dtype=ROW)
    rows[0]["timestep"], rows[0]["deviation"] = sampler.schedule.steps, 1
    for row, step in zip(rows[1:-1], steps, strict=True):
        for name in ROW.names or ():
            if name != "keeps":
                row[name] = getattr(step, name)
    rows["keeps"][:-1] = rows["previous_weight"][1:] != 0
    return rows


class DeviceLoop:
    """Draws batches of one shape on the device.

    A step is one evaluation of the network and one kernel. Both are captured in a CUDA graph,
    once, and replayed for every step of every batch; onnxruntime brings a graph of its own for
    the network. Sampler, seed and image numbers lie in device memory, so that all of them share
    the graph. Close it before the engine.

    Args:
        engine: that evaluates the network.
        inputs, outputs: of the bundle's manifest.
        shape: (batch, channels, height, width) of the images.
        schedule: of the model.

    Attributes:
        shape: of the images.
        refusal: why CUDA did not capture a step, or "".

    Raises:
        EngineUnavailableError: the engine, or what compiles the kernel, cannot do this here.
        OutOfDeviceMemoryError: the batch does not fit.
        UserError: a shape that the engine does not take, or a device whose noise is not the host's.
    """

    def __init__(
        self,
        engine: DeviceEngine,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        shape: tuple[int, int, int, int],
        schedule: Schedule,
    ) -> None:
        self.shape, self.refusal = shape, ""
        specs = {spec.name: spec for spec in (*inputs, *outputs)}
        _check(specs, shape)
        halves = {name for name, spec in specs.items() if spec.dtype == "float16"}
        batch, channels = shape[:2]
        self._pixels = math.prod(shape[2:])
        with ExitStack() as stack:
            device = open_device()
            self._stream = stack.enter_context(closing(Stream()))
            source = files("emfast.diffusion").joinpath("step.cu").read_text()
            kernel = Kernel(device, source, "sampling_step")
            self._kernel = stack.enter_context(closing(kernel))

            def memory(size: int) -> DeviceBuffer:
                return stack.enter_context(closing(DeviceBuffer(size)))

            size = math.prod(shape)
            self._x, previous = memory(4 * size), memory(4 * size)
            prediction = memory(size * np.dtype(specs["prediction"].dtype).itemsize)
            timestep = memory(batch * np.dtype(specs["timestep"].dtype).itemsize)
            reads = memory(2 * size) if "x" in halves else self._x
            # What a batch is told: the run, image numbers, the sampler's rows, and its clip.
            self._sizes = [
                RUN.itemsize,
                8 * batch,
                ROW.itemsize * (schedule.steps + 2),
                8 * channels,
            ]
            self._told = memory(sum(self._sizes))
            self._telling = stack.enter_context(closing(PinnedBuffer(self._told.size)))
            self._image = stack.enter_context(closing(PinnedBuffer(4 * size)))
            bound = {"x": (reads, shape), "prediction": (prediction, shape)}
            tensors = {
                name: DeviceTensor(buffer.address, specs[name].dtype, form)
                for name, (buffer, form) in {**bound, "timestep": (timestep, (batch,))}.items()
            }
            self._network = stack.enter_context(closing(engine.bind(tensors, self._stream)))
            pointers = [
                *(self._told.address + sum(self._sizes[:i]) for i in (0, 2, 1, 3)),
                *(b.address for b in (self._x, prediction, previous, reads, timestep)),
            ]
            types = sum(flag for name, flag in TYPES.items() if name in halves)
            numbers = (channels, self._pixels, types)
            self._arguments: list[ctypes._SimpleCData[Any]] = [
                *(ctypes.c_void_p(pointer) for pointer in pointers),
                *(ctypes.c_uint32(number) for number in numbers),
            ]
            self._graph: Graph | None = None
            self._warm = False
            self._check_noise(schedule)
            self._held = stack.pop_all()

    def sample(
        self,
        sampler: Sampler,
        seed: int,
        indices: Sequence[int],
        on_step: Callable[[], None] | None = None,
    ) -> Array:
        """Draw a batch of images; arguments and result as of
        :func:`emfast.diffusion.sampling.sample`, but ``indices`` fill the batch.

        ``on_step`` is called for several steps in a row, when the device has taken them.
        """
        self._tell(sampler, seed, indices)
        self._update()
        marks: list[tuple[int, Event]] = []
        try:
            for first in range(0, len(sampler.steps), QUEUED):
                count = min(QUEUED, len(sampler.steps) - first)
                for _ in range(count):
                    self._take_step()
                marks.append((count, self._stream.mark()))
                if len(marks) > 1:
                    _pass(marks, on_step)
            self._stream.copy_to_host(self._image, self._x, self._x.size)
            while marks:
                _pass(marks, on_step)
        except BaseException:
            for _, mark in marks:
                mark.close()
            raise
        self._stream.wait()
        images: Array = self._image.array.view(np.float32).reshape(self.shape).copy()
        return images

    def network_seconds(self, steps: int) -> float:
        """What ``steps`` evaluations of the network take without the kernel, captured as one is."""
        self._network.enqueue()
        self._stream.wait()
        graph = None
        if self._network.capturable:
            graph = self._stream.capture(self._network.enqueue)
        repeat = self._network.enqueue if graph is None else graph.launch
        start = time.perf_counter()
        for _ in range(steps):
            repeat()
        self._stream.wait()
        seconds = time.perf_counter() - start
        if graph is not None:
            graph.close()
        return seconds

    def _check_noise(self, schedule: Schedule) -> None:
        """Compare the noise of the first and the last image with the host's."""
        batch = self.shape[0]
        drawn = self.sample(Sampler(schedule, (), None), 0, range(batch))
        images = sorted({0, batch - 1})
        expected = normal_noise(0, images, schedule.steps, self.shape[1:])
        difference = float(np.abs(drawn[images] - expected).max())
        if not difference <= NOISE_TOLERANCE:
            raise UserError(f"the device's noise differs from the host's by {difference:.3g}")

    def _tell(self, sampler: Sampler, seed: int, indices: Sequence[int]) -> None:
        """Send the device what a batch is."""
        check_seed(seed)
        run = np.zeros(1, dtype=RUN)
        run["seed"] = seed
        clip = np.empty((2, self.shape[1]), dtype=np.float32)
        clip[:] = [[-np.inf], [np.inf]] if sampler.clip is None else sampler.clip
        begin = 0
        parts: tuple[npt.NDArray[Any], ...] = (
            run,
            np.array(indices, dtype=np.uint64),
            table(sampler),
            clip,
        )
        for part, size in zip(parts, self._sizes, strict=True):
            raw = part.reshape(-1).view(np.uint8)
            self._telling.array[begin : begin + raw.size] = raw
            begin += size
        self._stream.copy_to_device(self._told, self._telling, self._told.size)

    def _take_step(self) -> None:
        """Queue one step; the second of all is where the graph is captured."""
        if self._graph is None and self._warm and not (self.refusal or self._network.replays):
            self._capture()
        if self._graph is not None:
            self._graph.launch()
        else:
            self._evaluate_and_update()
            self._warm = True

    def _capture(self) -> None:
        try:
            if not self._network.capturable:
                raise UserError("the runtime does not let its run be captured")
            self._graph = self._stream.capture(self._evaluate_and_update)
        except UserError as error:
            self.refusal = str(error)
        if self.refusal:
            _log.warning("loop: without a CUDA graph (%s)", self.refusal)

    def _evaluate_and_update(self) -> None:
        self._network.enqueue()
        self._update()

    def _update(self) -> None:
        blocks = -(-self.shape[1] * self._pixels // (ELEMENTS * THREADS))
        self._kernel.launch(self._stream, (blocks, self.shape[0]), self._arguments)

    def close(self) -> None:
        """Free the device's memory."""
        self._stream.wait()
        if self._graph is not None:
            self._graph.close()
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _pass(marks: list[tuple[int, Event]], on_step: Callable[[], None] | None) -> None:
    """Wait for the first of the marks, and tell the steps that it stands for."""
    count, mark = marks.pop(0)
    with closing(mark):
        mark.wait()
    if on_step is not None:
        for _ in range(count):
            on_step()


def _check(specs: Mapping[str, TensorSpec], shape: tuple[int, ...]) -> None:
    """Refuse a network that the kernel cannot serve."""
    if specs.keys() != TYPES.keys():
        raise EngineUnavailableError(f"the network has the tensors {', '.join(specs)}")
    other = {s.dtype for s in specs.values()} - {"float32", "float16"}
    if other:
        raise EngineUnavailableError(f"the network has tensors of {', '.join(sorted(other))}")
    if math.prod(shape[1:]) % 2:
        raise UserError(f"noise of shape {shape[1:]} has an odd number of elements")
