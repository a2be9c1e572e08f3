"""A denoiser bundle on an engine, ready to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from emfast.channels import Uint8, decode
from emfast.diffusion.device_sampling import DeviceLoop
from emfast.diffusion.samplers import Sampler
from emfast.diffusion.sampling import Denoise, sample
from emfast.diffusion.spec import DenoiserSpec
from emfast.runtime import BATCH, denoiser_shapes, open_runtime
from emfast.synthesis.reuse import DividedDenoiser, FeatureReuse
from engines.bundle import Bundle, open_bundle
from engines.cuda import OutOfDeviceMemoryError
from engines.device import DeviceEngine
from engines.engine import Engine, EngineUnavailableError
from engines.errors import UserError

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Place:
    """Where the steps of a batch are taken.

    Attributes:
        name: "device", where the engine shares its memory, or "host".
        reason: why not on the device.
        full: whether that is for want of memory.
    """

    name: str
    reason: str = ""
    full: bool = False

    def __str__(self) -> str:
        return f"on the {self.name}" + (f" ({self.reason})" if self.reason else "")


class Generator:
    """Draws labelled images with a denoiser.

    A context manager; leaving it frees the engine.

    Args:
        bundle: of the denoiser.
        engine: that runs it.
        passed_over: why better engines were not taken, one line each.
    """

    def __init__(self, bundle: Bundle, engine: Engine, passed_over: Sequence[str] = ()) -> None:
        self.bundle = bundle
        self.engine = engine
        self.passed_over = tuple(passed_over)
        self.spec = DenoiserSpec.from_dict(bundle.manifest.model)
        self._loop: DeviceLoop | None = None
        self._divided: DividedDenoiser | None = None
        self._refusals: dict[Shape, UserError] = {}

    @classmethod
    def open(
        cls,
        bundle: str | Path = "epfl-denoiser",
        engine: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        batch: int = BATCH,
        size: tuple[int, int] | None = None,
    ) -> Self:
        """Open a denoiser bundle on an engine.

        Args:
            bundle: a folder, or the name of a shipped bundle.
            engine, precision, threads: as for :func:`engines.selection.open_engine`.
            batch: images that will be drawn together; a TensorRT engine is tuned for it.
            size: height and width in pixels of the images that will be drawn; what the model was
                trained for by default. A TensorRT engine takes no other.

        Raises:
            UserError: no such bundle, a damaged one, or no such engine here.
        """
        opened = open_bundle(bundle, kind="denoiser")
        shapes = denoiser_shapes(batch, size or DenoiserSpec.from_dict(opened.manifest.model).size)
        selection = open_runtime(opened, shapes, engine, precision, threads)
        return cls(opened, selection.engine, selection.passed_over)

    def check_size(self, size: tuple[int, int]) -> None:
        """:class:`UserError` unless images of (height, width) pixels can be drawn."""
        multiple = self.bundle.manifest.multiple
        if min(size) < multiple or any(side % multiple for side in size):
            raise UserError(
                f"images of {size[1]} x {size[0]} pixels: both sides must be a multiple of "
                f"{multiple}; this model was trained for {self.spec.size[1]} x {self.spec.size[0]}"
            )
        fixed = self.bundle.manifest.inputs[0].shape[2:]
        if any(isinstance(f, int) and f != s for f, s in zip(fixed, size, strict=True)):
            raise UserError(
                f"images of {size[1]} x {size[0]} pixels: this bundle draws "
                f"{fixed[1]} x {fixed[0]} only"
            )

    def check_reuse(self, interval: int) -> None:
        """:class:`UserError` unless deep features can be kept for ``interval`` steps here."""
        if interval < 1:
            raise UserError(f"--reuse {interval}: must be at least 1, which reuses nothing")
        if interval > 1 and self._divided is None:
            self._divided = DividedDenoiser(self.engine)

    def prepare(self, batch: int, size: tuple[int, int] | None = None) -> Place:
        """Set up the loop for batches of one shape; :meth:`draw` does so too.

        Args:
            batch: images that will be drawn together.
            size: height and width in pixels; what the model was trained for by default.
        """
        shape = (batch, len(self.spec.channels), *(size or self.spec.size))
        if self._device_loop(shape) is not None:
            return Place("device")
        error = self._refusals[shape]
        return Place("host", str(error), isinstance(error, OutOfDeviceMemoryError))

    def draw(
        self,
        indices: Sequence[int],
        seed: int = 0,
        steps: int | None = None,
        size: tuple[int, int] | None = None,
        on_step: Callable[[], None] | None = None,
        sampler: str = "ddpm",
        eta: float = 0.0,
        reuse: int = 1,
    ) -> tuple[Uint8, Uint8]:
        """Draw the images with these numbers of the set that ``seed`` names.

        Args:
            indices: of the images, each in [0, 2^64 - 1]; they form one batch.
            seed: of the whole set, in [0, 2^64 - 1].
            steps: of sampling; all of the schedule's by default.
            size: height and width in pixels; what the model was trained for by default.
            on_step: called after each step.
            sampler: one of :data:`emfast.diffusion.samplers.SAMPLERS`.
            eta: of "ddim", in [0, 1]; the others take none.
            reuse: steps for which deep features are kept (:mod:`emfast.synthesis.reuse`); with 1
                every step computes them.

        Returns:
            Images, uint8 (len(indices), height, width), greys in [0, 255], and label maps, uint8
            of that shape, 0 for background.

        Raises:
            UserError: a size or a number of steps that the model cannot do, no such sampler, or
                an engine that cannot reuse features.
        """
        return self.sample(indices, seed, steps, size, on_step, sampler, eta, reuse)()

    def sample(
        self,
        indices: Sequence[int],
        seed: int = 0,
        steps: int | None = None,
        size: tuple[int, int] | None = None,
        on_step: Callable[[], None] | None = None,
        sampler: str = "ddpm",
        eta: float = 0.0,
        reuse: int = 1,
    ) -> Callable[[], tuple[Uint8, Uint8]]:
        """As :meth:`draw`, but the images are still to be decoded.

        Returns:
            Gives what :meth:`draw` gives. Another thread may call it while the next batch is drawn.
        """
        size = size or self.spec.size
        self.check_size(size)
        self.check_reuse(reuse)
        made = self.spec.sampler(steps, sampler, eta)
        x = self._channels(made, seed, indices, size, on_step, reuse)
        return partial(self._decode, x)

    def _decode(self, x: npt.NDArray[np.float32]) -> tuple[Uint8, Uint8]:
        if not np.isfinite(x).all():
            raise UserError(
                f"{self.bundle.path}: the network drew values that are not numbers on "
                f"{self.engine.info}; try --precision fp32 and another --out"
            )
        return decode(self.spec.channels, x)

    def _channels(
        self,
        sampler: Sampler,
        seed: int,
        indices: Sequence[int],
        size: tuple[int, int],
        on_step: Callable[[], None] | None,
        reuse: int,
    ) -> npt.NDArray[np.float32]:
        shape = (len(self.spec.channels), *size)
        network: Engine | FeatureReuse = self.engine
        if reuse > 1 and self._divided is not None:
            network = FeatureReuse(self._divided, reuse)
        elif (loop := self._device_loop((len(indices), *shape))) is not None:
            return loop.sample(sampler, seed, indices, on_step)
        return sample(self._denoiser(network), sampler, seed, indices, shape, on_step)

    def _device_loop(self, shape: Shape) -> DeviceLoop | None:
        """The loop on the device for a shape; None, with a reason, where there is none."""
        if self._loop is not None and self._loop.shape == shape:
            return self._loop
        if shape in self._refusals:
            return None
        self._close_loop()
        manifest = self.bundle.manifest
        try:
            if not isinstance(self.engine, DeviceEngine):
                raise EngineUnavailableError(f"{self.engine.info.engine} shares no device memory")
            self._loop = DeviceLoop(
                self.engine, manifest.inputs, manifest.outputs, shape, self.spec.schedule
            )
        except UserError as error:
            self._refusals[shape] = error
        return self._loop

    def network_seconds(self, batch: int, steps: int) -> float:
        """What the network's evaluations of ``steps`` steps take of a batch on the device.

        Raises:
            UserError: the steps of this batch are taken on the host.
        """
        shape = (batch, len(self.spec.channels), *self.spec.size)
        loop = self._device_loop(shape)
        if loop is None:
            raise self._refusals[shape]
        return loop.network_seconds(steps)

    def _close_loop(self) -> None:
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _denoiser(self, network: Engine | FeatureReuse) -> Denoise:
        def denoise(
            x: npt.NDArray[np.float32], timestep: npt.NDArray[np.float32]
        ) -> npt.NDArray[np.float32]:
            arrays = {"x": x, "timestep": timestep}
            inputs = {
                spec.name: arrays[spec.name].astype(spec.dtype, copy=False)
                for spec in self.bundle.manifest.inputs
            }
            return network.run(inputs)["prediction"].astype(np.float32, copy=False)

        return denoise

    def close(self) -> None:
        """Free the loop and the engine."""
        self._close_loop()
        if self._divided is not None:
            self._divided.close()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
