"""What is kept of the probabilities, and the answer that it becomes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from emfast.pictures import overlay
from emfast.segmentation.greys import prepare
from emfast.segmentation.overlays import shown
from emfast.segmentation.preprocessing import SegmenterSpec, Uint8, label_map
from emfast.segmentation.resampling import LARGEST_FACTOR, factors, grown
from emfast.server.batching import AS_STORED, Probability, Reading
from emfast.server.decode import Decoded
from emfast.server.errors import ApiError
from engines.errors import UserError

Kept = npt.NDArray[np.generic]
# Levels of the probability in a layer of 8 bits.
LEVELS = 256


class Output(StrEnum):
    """What a request may ask for."""

    PNG = "png"
    TIFF = "tiff"
    NPY = "npy"
    CONTOURS = "contours"
    PROBABILITY = "probability"
    OVERLAY = "overlay"
    LAYERS = "layers"


MEDIA_TYPES = {
    Output.PNG: "image/png",
    Output.TIFF: "image/tiff",
    Output.NPY: "application/x-npy",
    Output.CONTOURS: "application/json",
    Output.PROBABILITY: "application/x-npy",
    Output.OVERLAY: "image/png",
    Output.LAYERS: "image/png",
}
PICTURES = (Output.PNG, Output.OVERLAY, Output.LAYERS)


@dataclass(frozen=True)
class Wanted:
    """What one request asks for.

    Attributes:
        output: form of the answer.
        spec: of the segmenter, with the request's threshold.
        label: the class that ``layers`` shows, from 1.
        reading: of the greys.
        from_file: whether the reading's pixel size is what the file says, not the request.
    """

    output: Output
    spec: SegmenterSpec
    label: int = 1
    reading: Reading = AS_STORED
    from_file: bool = False

    def completed(self, decoded: Decoded) -> Wanted:
        """The same with the file's pixel size, where the request gives none and the file does."""
        if self.reading.pixel_size is not None or decoded.pixel_size is None:
            return self
        reading = replace(self.reading, pixel_size=decoded.pixel_size)
        return replace(self, reading=reading, from_file=True)

    def check(self, decoded: Decoded, max_pixels: int) -> None:
        """Refuse what cannot be answered before anything runs.

        Args:
            decoded: the request's slices.
            max_pixels: that the network may see in all, after resampling.

        Raises:
            ApiError: a picture of a stack, a class that is not there, greys or a pixel size that
                the model cannot be told about, or too many pixels.
        """
        if self.output in PICTURES and len(decoded.slices) > 1:
            raise ApiError(
                422,
                f"a stack of {len(decoded.slices)} slices with output={self.output}",
                "for stacks output=tiff, npy, contours or probability",
            )
        if not 1 <= self.label <= self.spec.classes:
            names = ", ".join(f"{i} {name}" for i, name in enumerate(self.spec.labels, 1))
            raise ApiError(422, f"label={self.label}", names)
        dtype = decoded.slices.dtype
        if self.spec.normalization == "unit" and dtype != np.uint8:
            raise ApiError(422, f"{dtype} values", "8-bit greys: this model takes 0 to 255")
        by = self._factors()
        if by is not None:
            height, width = grown(decoded.slices.shape[1:], by)
            if (seen := len(decoded.slices) * height * width) > max_pixels:
                raise ApiError(
                    413,
                    f"{seen} pixels of the model's {self.spec.pixel_size:g} nm",
                    f"at most {max_pixels} pixels after resampling; send fewer slices or tiles",
                )

    def _factors(self) -> tuple[float, float] | None:
        """By how much slices grow before the network; :class:`ApiError` for a wrong pixel size."""
        size, trained = self.reading.pixel_size, self.spec.pixel_size
        if size is None:
            return None
        if trained is None:
            if self.from_file:
                return None
            raise ApiError(
                422,
                f"pixel_size={size[0]:g}",
                "no pixel_size: the model does not say which one it was trained on",
            )
        try:
            return factors(size, trained)
        except UserError:
            accepted = f"nm, at most {LARGEST_FACTOR:g} times from the model's {trained:g} nm"
            got = f"pixel_size={size[0]:g}"
            if self.from_file:
                got = f"a file of pixels of {size[0]:g} x {size[1]:g} nm"
                accepted += "; where the file is wrong, say the pixel size with pixel_size"
            raise ApiError(422, got, accepted) from None

    def read_as(self, decoded: Decoded) -> str:
        """How greys and pixel size are read, as JSON for a header."""
        clipped = invalid = blank = 0
        for image in decoded.slices:
            if image.dtype == np.uint8:  # all are numbers, and none is clipped
                blank += int(image.min() == image.max())
                continue
            prepared = prepare(image, self.spec.normalization, self.reading.greys)
            clipped += prepared.clipped
            invalid += 0 if prepared.invalid is None else int(prepared.invalid.sum())
            blank += int(prepared.blank)
        values = {
            "dtype": decoded.slices.dtype.name,
            "inverted": self.reading.greys.invert,
            "clipped": clipped,
            "invalid": invalid,
            "blank": blank,
            **self._scale(),
            "resampled": self._factors() is not None,
        }
        return json.dumps(values)

    def _scale(self) -> dict[str, Any]:
        """Height and width of a pixel in nm as used, and who says so."""
        size, trained = self.reading.pixel_size, self.spec.pixel_size
        if size is not None:
            source = "file" if self.from_file else "request"
            return {"pixel_size": list(size), "pixel_size_from": source}
        if trained is not None:
            return {"pixel_size": [trained, trained], "pixel_size_from": "model"}
        return {"pixel_size": None, "pixel_size_from": None}

    def reduce(self, probability: Probability) -> Kept:
        """Keep what the answer needs of a slice, on the worker, so that little waits in memory.

        Args:
            probability: float32 (classes, height, width) in [0, 1].

        Returns:
            the probability itself; one class of it in 256 levels, uint8 (height, width); or
            labels, uint8 (height, width).
        """
        if self.output is Output.PROBABILITY:
            return probability
        if self.output is Output.LAYERS:
            # Level k holds [k / 256, (k + 1) / 256): a threshold of k / 256 cuts it exactly.
            levels = np.floor(probability[self.label - 1] * LEVELS)
            layer: Uint8 = np.minimum(levels, LEVELS - 1).astype(np.uint8)
            return layer
        labels: Uint8 = label_map(probability[None], self.spec.threshold)[0]
        return labels

    def encode(self, decoded: Decoded, kept: Sequence[Any]) -> bytes:
        """The body of the answer, of :data:`MEDIA_TYPES`.

        Args:
            decoded: the request's slices.
            kept: what :meth:`reduce` gave for each.
        """
        if decoded.slices.dtype.kind == "f" and self.output not in (
            Output.PROBABILITY,
            Output.LAYERS,
        ):  # no number, no object, whatever the threshold
            for image, labels in zip(decoded.slices, kept, strict=True):
                labels[~np.isfinite(image)] = 0
        match self.output:
            case Output.PROBABILITY:
                return _npy(np.stack(kept) if decoded.stack else kept[0])
            case Output.LAYERS:
                grey = shown(decoded.slices[0])
                return _png(np.stack([grey, kept[0], np.zeros_like(grey)], axis=-1))
            case Output.OVERLAY:
                return _png(overlay(shown(decoded.slices[0]), kept[0]))
            case Output.CONTOURS:
                return _contours(kept, self.spec)
        # As mask files hold them: 0 and 255 for one class.
        masks = [labels * np.uint8(255 if self.spec.classes == 1 else 1) for labels in kept]
        if self.output is Output.PNG:
            return _png(masks[0])
        if self.output is Output.TIFF:
            return _tiff(masks)
        return _npy(np.stack(masks) if decoded.stack else masks[0])


def _png(pixels: Uint8) -> bytes:
    file = io.BytesIO()
    # Twice as fast as the default of 6, and little larger.
    Image.fromarray(pixels).save(file, format="PNG", compress_level=3)
    return file.getvalue()


def _tiff(masks: Sequence[Uint8]) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        for mask in masks:
            tiff.write(mask, photometric="minisblack", compression="zlib", metadata=None)
    return file.getvalue()


def _npy(array: Kept) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _contours(kept: Sequence[Uint8], spec: SegmenterSpec) -> bytes:
    from emfast.server.contours import contours

    def dump(values: Any) -> str:
        return json.dumps(values, separators=(",", ":"))

    # Object by object: the encoder holds Python's lock from its beginning to its end, and all
    # other requests would wait for a long answer.
    slices = []
    for labels in kept:
        objects = ",".join(dump(item) for item in contours(labels, spec.labels))
        slices.append(f'{{"objects":[{objects}]}}')
    height, width = kept[0].shape
    head = dump({"width": width, "height": height, "threshold": spec.threshold})
    return f'{head[:-1]},"slices":[{",".join(slices)}]}}'.encode()
