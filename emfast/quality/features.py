"""A frozen network that turns images into feature vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.bundle import open_bundle
from engines.engine import EngineInfo
from engines.errors import UserError
from engines.files import sha256
from engines.onnxruntime import OnnxRuntimeEngine

Uint8 = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]

ENCODER = Path(__file__).parent / "encoder"
BATCH = 4


class FeatureNetwork:
    """Turns images into feature vectors. A context manager: leaving it frees the memory.

    Made by :meth:`open`.

    Attributes:
        name: of the network.
        sha256: of its ONNX file. Scores of two networks cannot be compared.
        width: length of a vector.
    """

    def __init__(self, graph: Path, name: str, threads: int | None = None) -> None:
        """Load an ONNX file; arguments and errors as for :meth:`open`."""
        self.name = name
        self.sha256 = sha256(graph)
        # Always this engine and FP32: a yardstick must not depend on what else is installed.
        self._engine = _Graph(graph, "onnxruntime-cpu", "fp32", threads)
        try:
            self._input, self._channels, self._size = _greys_input(graph, self._engine)
            self.width = _vector_output(graph, self._engine)
        except UserError:
            self._engine.close()
            raise

    @classmethod
    def open(cls, file: Path | None = None, threads: int | None = None) -> Self:
        """Open a feature network.

        Args:
            file: an ONNX file that takes greys from 0 to 255, float32 (batch, 1 or 3, height,
                width), the same in all channels, and gives (batch, features). Whatever else the
                network needs, such as a normalisation, belongs into its graph; images are resized
                where it takes one size only. The encoder that comes with emfast by default.
            threads: CPU threads; all processors of this process by default.

        Raises:
            UserError: no such file, a damaged one, or one with other inputs or outputs.
        """
        if file is None:
            bundle = open_bundle(ENCODER, "encoder")
            return cls(bundle.graph("fp32"), bundle.manifest.name, threads)
        if not file.is_file():
            raise UserError(f"{file}: no such file; give the ONNX file of a feature network")
        return cls(file, file.name, threads)

    @property
    def info(self) -> EngineInfo:
        """Engine, precision, device and version."""
        return self._engine.info

    def __call__(self, images: Uint8) -> Features:
        """The features of images.

        Args:
            images: uint8 (count, height, width), greys in [0, 255].

        Returns:
            float32 (count, width).

        Raises:
            UserError: images that the network does not take, or features that are not numbers.
        """
        parts = [np.empty((0, self.width), dtype=np.float32)]
        for first in range(0, len(images), BATCH):
            greys = images[first : first + BATCH].astype(np.float32)
            if self._size is not None and greys.shape[1:] != self._size:
                greys = np.stack([_resize(grey, self._size) for grey in greys])
            x = np.repeat(greys[:, None], self._channels, axis=1)
            (values,) = self._engine.run({self._input: x}).values()
            if not np.isfinite(values).all():
                raise UserError(f"{self.name}: gave features that are not numbers")
            parts.append(values.astype(np.float32, copy=False))
        return np.concatenate(parts)

    def close(self) -> None:
        """Free the memory."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Graph(OnnxRuntimeEngine):
    """An engine that tells the inputs and outputs of a graph without a manifest."""

    @property
    def inputs(self) -> list[tuple[str, str, list[int | str]]]:
        """Name, type and shape of each input; free axes have a name."""
        return [(i.name, i.type, i.shape) for i in self._session.get_inputs()]

    @property
    def outputs(self) -> list[tuple[str, str, list[int | str]]]:
        """Name, type and shape of each output."""
        return [(o.name, o.type, o.shape) for o in self._session.get_outputs()]


def _greys_input(graph: Path, engine: _Graph) -> tuple[str, int, tuple[int, int] | None]:
    """Name, channels and, where it is fixed, the size of a feature network's input."""
    described = ", ".join(f"{name} {kind} {shape}" for name, kind, shape in engine.inputs)
    name, kind, shape = engine.inputs[0]
    if (
        len(engine.inputs) != 1
        or kind != "tensor(float)"
        or len(shape) != 4
        or isinstance(shape[0], int)
        or shape[1] not in (1, 3)
    ):
        raise UserError(
            f"{graph}: takes {described}; a feature network takes one input, float "
            "(batch, 1 or 3, height, width) with a free batch"
        )
    height, width = shape[2:]
    fixed = isinstance(height, int) and isinstance(width, int)
    return name, int(shape[1]), (int(height), int(width)) if fixed else None


def _vector_output(graph: Path, engine: _Graph) -> int:
    """Length of a feature network's vectors."""
    described = ", ".join(f"{name} {kind} {shape}" for name, kind, shape in engine.outputs)
    shape = engine.outputs[0][2]
    if len(engine.outputs) != 1 or len(shape) != 2 or not isinstance(shape[1], int):
        raise UserError(
            f"{graph}: gives {described}; a feature network gives one output, (batch, features)"
        )
    return shape[1]


def _resize(grey: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    picture = Image.fromarray(grey).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(picture)
