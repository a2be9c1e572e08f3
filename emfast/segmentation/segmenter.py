"""A segmenter bundle on an engine: grey slices in, probabilities or label maps out."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from emfast.runtime import SEGMENTER_BATCH, TILE, open_runtime, segmenter_shapes
from emfast.segmentation import tiling
from emfast.segmentation.flips import check_flips, mean_over_flips
from emfast.segmentation.greys import Greys, measure_volume, prepare
from emfast.segmentation.preprocessing import Scope, SegmenterSpec, Uint8, label_map
from emfast.segmentation.resampling import factors, grown, network_input, resample
from engines.bundle import Bundle, open_bundle
from engines.engine import Engine, EngineInfo
from engines.errors import UserError

Pixels = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

AS_STORED = Greys()
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
        tile, overlap, flips: as for :meth:`open`.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        threshold: float | None = None,
        tile: int = TILE,
        passed_over: tuple[str, ...] = (),
        overlap: int | None = None,
        flips: int = 1,
    ) -> None:
        """Put a segmenter bundle on an engine that runs it; arguments as for :meth:`open`."""
        spec = SegmenterSpec.from_dict(bundle.manifest.model)
        if threshold is not None:
            spec = replace(spec, threshold=threshold)
        _check_tensors(bundle, spec)
        self._multiple = bundle.manifest.multiple
        self._dtype = np.dtype(bundle.manifest.inputs[0].dtype)
        check_flips(flips)
        if overlap is not None and overlap < 0:
            raise UserError(f"overlap {overlap}: give a number of pixels, 0 or more")
        halo = tiling.HALO if overlap is None else overlap
        least = tiling.least_tile(self._multiple, halo)
        if tile < least:
            raise UserError(
                f"tiles of {tile} pixels are too small; give {least} or more, "
                f"{halo} on each side are cut off"
            )
        self.bundle, self.spec, self.passed_over = bundle, spec, passed_over
        self.tile, self.overlap, self.flips = tile, overlap, flips
        self._engine = engine

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
        overlap: int | None = None,
        flips: int = 1,
        scope: Scope | None = None,
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
            size: height and width of all slices as the network sees them, where they are known: a
                TensorRT engine that was built for this size alone is then taken.
            overlap: pixels that a tile sees beyond what is kept of it. The default is wider than
                what the network looks to either side, so that tiles give what the whole slice
                gives; less is faster, blended and not exact.
            flips: 1, or 4 or 8 for the mean over as many mirror images, at as many times the time.
            scope: "slice" or "volume" statistics of greys, instead of the bundle's.

        Raises:
            UserError: no such bundle, a damaged one or one of another kind, an engine or precision
                that cannot be had, or values out of range.
        """
        opened = open_bundle(bundle, "segmenter")
        shapes = segmenter_shapes(opened.manifest, tile, size if flips < 8 else None)
        selection = open_runtime(opened, shapes, engine, precision, threads)
        try:
            segmenter = cls(
                opened, selection.engine, threshold, tile, selection.passed_over, overlap, flips
            )
            if scope is not None:
                segmenter.spec = replace(segmenter.spec, scope=scope)
            return segmenter
        except UserError:
            selection.engine.close()
            raise

    @property
    def info(self) -> EngineInfo:
        """Engine, precision, device and version that really run."""
        return self._engine.info

    def probability(
        self,
        images: Pixels,
        greys: Greys = AS_STORED,
        pixel_size: tuple[float, float] | None = None,
    ) -> Float32:
        """The probability of each class at each pixel.

        Args:
            images: integers or floats (slices, height, width), of any height and width from 1
                pixel. bool and complex numbers are no greys.
            greys: how to read them. Each slice is normalised as a whole, or all of them together
                where the spec's scope is "volume" and ``greys`` has no statistics.
            pixel_size: height and width of a pixel in nm. Where it differs from that of the
                network's training, slices are resampled, and the probability back.

        Returns:
            float32 (slices, classes, height, width) in [0, 1]; 0 where the slice holds no number,
            and in all of a slice of one grey.

        Raises:
            UserError: an array of another shape or dtype, without pixels, or a network whose
                numbers overflow.
        """
        if images.ndim != 3 or images.dtype.kind not in "iuf" or 0 in images.shape[1:]:
            raise UserError(
                f"images are {images.dtype} of shape {images.shape}; "
                "expected integers or floats (slices, height, width)"
            )
        count, height, width = images.shape
        by = factors(pixel_size, self.spec.pixel_size)
        if self.spec.scope == "volume" and greys.statistics is None and count:
            statistics = measure_volume(lambda index: images[index], count, greys.limits)
            greys = replace(greys, statistics=statistics)
        result = np.empty((count, self.spec.classes, height, width), dtype=np.float32)
        batch = self.batch_size((height, width) if by is None else grown((height, width), by))
        for first in range(0, count, batch):
            planes = [
                prepare(image, self.spec.normalization, greys)
                for image in images[first : first + batch]
            ]
            x = network_input([plane.x for plane in planes], by)
            part = resample(self.predict(x), (height, width), smooth=False)
            for plane, probability in zip(planes, part, strict=True):
                plane.erase(probability)
            result[first : first + batch] = part
        return result

    def batch_size(self, size: tuple[int, int]) -> int:
        """Slices that run together, of a height and width in pixels of the network."""
        # The engine may be built for one slice at a time: open asks for no more.
        if self.info.engine.startswith("tensorrt"):
            return 1
        return min(max(1, BATCH_PIXELS // (size[0] * size[1])), SEGMENTER_BATCH)

    def predict(self, x: Float32) -> Float32:
        """Run the network on prepared slices, tile by tile.

        Args:
            x: float32 (slices, 1, height, width), normalised.

        Returns:
            float32 (slices, classes, height, width) in [0, 1].

        Raises:
            UserError: a network whose numbers overflow.
        """
        return mean_over_flips(self._predict, x, self.flips)

    def _predict(self, x: Float32) -> Float32:
        height, width = x.shape[-2:]
        x = tiling.pad(x, self._multiple)
        rows, columns = (
            tiling.spans(side, self.tile, self._multiple, self.overlap) for side in x.shape[-2:]
        )
        if len(rows) == len(columns) == 1:
            return self._run(x)[..., :height, :width]
        result = np.zeros((len(x), self.spec.classes, height, width), dtype=np.float32)
        if not self._blends:
            for row, column in product(rows, columns):
                # What is kept of the last tiles may reach into the padding: the target cuts it.
                target = result[..., row.kept, column.kept]
                kept = self._run(x[..., row.seen, column.seen])[
                    ..., row.kept_in_tile, column.kept_in_tile
                ]
                target[:] = kept[..., : target.shape[-2], : target.shape[-1]]
            return result
        halo = tiling.HALO if self.overlap is None else self.overlap
        down, across = tiling.ramps(rows, halo), tiling.ramps(columns, halo)
        for (row, rises), (column, runs) in product(
            zip(rows, down, strict=True), zip(columns, across, strict=True)
        ):
            tile = self._run(x[..., row.seen, column.seen])
            tile *= rises[:, None] * runs
            target = result[..., row.seen, column.seen]
            target += tile[..., : target.shape[-2], : target.shape[-1]]
        return result

    @property
    def _blends(self) -> bool:
        """Whether the halo is so narrow that tiles differ where they meet."""
        return self.overlap is not None and 0 < self.overlap < tiling.HALO

    def _run(self, x: Float32) -> Float32:
        """One tile, of sides divisible by the network's multiple."""
        x = np.ascontiguousarray(x).astype(self._dtype, copy=False)
        tile = self._engine.run({"x": x})["probability"]
        if not np.isfinite(tile).all():
            raise UserError(
                f"{self.info}: gave probabilities that are not numbers; run another "
                "precision or engine"
            )
        return tile.astype(np.float32, copy=False)

    def segment(
        self,
        images: Pixels,
        greys: Greys = AS_STORED,
        pixel_size: tuple[float, float] | None = None,
    ) -> Uint8:
        """The class of each pixel.

        Args:
            images, greys, pixel_size: as for :meth:`probability`.

        Returns:
            uint8 of the same shape: the label, from 1, of the class whose probability is largest
            and not below the threshold, or else 0.

        Raises:
            UserError: as :meth:`probability`.
        """
        labels = label_map(self.probability(images, greys, pixel_size), self.spec.threshold)
        if images.dtype.kind == "f":
            labels[~np.isfinite(images)] = 0
        return labels

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
