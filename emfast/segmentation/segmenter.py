"""A segmenter bundle on an engine: grey slices in, probabilities or label maps out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from emfast.runtime import TILE, open_runtime, segmenter_shapes
from emfast.segmentation import tiling
from emfast.segmentation.preprocessing import SegmenterSpec, Uint8, label_map, normalize
from engines.bundle import Bundle, open_bundle
from engines.engine import Engine, EngineInfo
from engines.errors import UserError

SHIPPED = "epfl-segmenter"
# Small slices run as batches of so many pixels.
BATCH_PIXELS = 1024 * 1024


class Segmenter:
    """Segments slices of any size. A context manager: leaving it frees the device.

    Made by :meth:`open`.

    Attributes:
        bundle: that it runs.
        spec: classes, normalisation and threshold; the bundle's, but for a threshold that was
            given to :meth:`open`.
        passed_over: one line for each engine that "auto" would have preferred, with the reason.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        threshold: float | None = None,
        tile: int = TILE,
        passed_over: tuple[str, ...] = (),
    ) -> None:
        """Put a segmenter bundle on an engine that runs it; arguments as for :meth:`open`."""
        spec = SegmenterSpec.from_dict(bundle.manifest.model)
        if threshold is not None:
            spec = replace(spec, threshold=threshold)
        _check_tensors(bundle, spec)
        self._multiple = bundle.manifest.multiple
        self._dtype = np.dtype(bundle.manifest.inputs[0].dtype)
        if tile < tiling.least_tile(self._multiple):
            raise UserError(
                f"tiles of {tile} pixels are too small; give {tiling.least_tile(self._multiple)} "
                f"or more, {tiling.HALO} on each side are cut off"
            )
        self.bundle, self.spec, self.passed_over = bundle, spec, passed_over
        self._engine, self._tile = engine, tile

    @classmethod
    def open(
        cls,
        bundle: str | Path = SHIPPED,
        engine: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        threshold: float | None = None,
        tile: int = TILE,
        size: tuple[int, int] | None = None,
    ) -> Self:
        """Open a bundle on an engine.

        Args:
            bundle: a folder, or the name of a shipped bundle.
            engine: one of :data:`engines.selection.ENGINES`. "auto" takes the first that runs
                here; a name means that engine or an error.
            precision: one of :data:`engines.selection.PRECISIONS`.
            threads: CPU threads; all processors of this process by default.
            threshold: in [0, 1], instead of the bundle's.
            tile: longest side, in pixels, that runs in one piece. It bounds the memory.
            size: height and width of all slices, where they are known: a TensorRT engine that was
                built for this size alone is then taken.

        Raises:
            UserError: no such bundle, a damaged one or one of another kind, an engine or precision
                that cannot be had, or values out of range.
        """
        opened = open_bundle(bundle, "segmenter")
        shapes = segmenter_shapes(opened.manifest, tile, size)
        selection = open_runtime(opened, shapes, engine, precision, threads)
        try:
            return cls(opened, selection.engine, threshold, tile, selection.passed_over)
        except UserError:
            selection.engine.close()
            raise

    @property
    def info(self) -> EngineInfo:
        """Engine, precision, device and version that really run."""
        return self._engine.info

    def probability(self, images: Uint8) -> npt.NDArray[np.float32]:
        """The probability of each class at each pixel.

        Args:
            images: uint8 (slices, height, width), greys in [0, 255], of any height and width from
                1 pixel. Each slice is normalised as a whole.

        Returns:
            float32 (slices, classes, height, width) in [0, 1].

        Raises:
            UserError: an array of another shape or dtype, without pixels, or a network whose
                numbers overflow.
        """
        if images.ndim != 3 or images.dtype != np.uint8 or 0 in images.shape[1:]:
            raise UserError(
                f"images are {images.dtype} of shape {images.shape}; "
                "expected uint8 (slices, height, width)"
            )
        count, height, width = images.shape
        result = np.empty((count, self.spec.classes, height, width), dtype=np.float32)
        batch = max(1, BATCH_PIXELS // (height * width))
        for first in range(0, count, batch):
            part = slice(first, first + batch)
            x = tiling.pad(normalize(images[part], self.spec.normalization), self._multiple)
            padded_height, padded_width = x.shape[-2:]
            for row, column in tiling.tiles(
                padded_height, padded_width, self._tile, self._multiple
            ):
                seen = np.ascontiguousarray(x[..., row.seen, column.seen])
                tile = self._engine.run({"x": seen.astype(self._dtype, copy=False)})["probability"]
                if not np.isfinite(tile).all():
                    raise UserError(
                        f"{self.info}: gave probabilities that are not numbers; run another "
                        "precision or engine"
                    )
                # What is kept of the last tiles may reach into the padding: the target cuts it.
                target = result[part, :, row.kept, column.kept]
                kept = tile[..., row.kept_in_tile, column.kept_in_tile]
                target[:] = kept[..., : target.shape[-2], : target.shape[-1]]
        return result

    def segment(self, images: Uint8) -> Uint8:
        """The class of each pixel.

        Args:
            images: as for :meth:`probability`.

        Returns:
            uint8 of the same shape: the label, from 1, of the class whose probability is largest
            and not below the threshold, or else 0.

        Raises:
            UserError: as :meth:`probability`.
        """
        return label_map(self.probability(images), self.spec.threshold)

    def close(self) -> None:
        """Free the device."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_tensors(bundle: Bundle, spec: SegmenterSpec) -> None:
    """Refuse a manifest whose tensors are not those of a segmenter with these classes."""
    inputs = {tensor.name: tensor.shape[1:2] for tensor in bundle.manifest.inputs}
    outputs = {tensor.name: tensor.shape[1:2] for tensor in bundle.manifest.outputs}
    if inputs != {"x": (1,)} or outputs != {"probability": (spec.classes,)}:
        raise UserError(
            f"{bundle.path}: its graphs turn {inputs} into {outputs}, name and channels; a "
            f"segmenter of {spec.classes} classes turns x (1) into probability ({spec.classes})"
        )
