"""What is kept of the probabilities, and the answer that it becomes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from emfast.pictures import overlay
from emfast.segmentation.preprocessing import SegmenterSpec, Uint8, label_map
from emfast.server.batching import Probability
from emfast.server.decode import Decoded
from emfast.server.errors import ApiError

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
    """

    output: Output
    spec: SegmenterSpec
    label: int = 1

    def check(self, decoded: Decoded) -> None:
        """Refuse a picture of a stack, and a class that is not there; :class:`ApiError`."""
        if self.output in PICTURES and len(decoded.slices) > 1:
            raise ApiError(
                422,
                f"a stack of {len(decoded.slices)} slices with output={self.output}",
                "for stacks output=tiff, npy, contours or probability",
            )
        if not 1 <= self.label <= self.spec.classes:
            names = ", ".join(f"{i} {name}" for i, name in enumerate(self.spec.labels, 1))
            raise ApiError(422, f"label={self.label}", names)

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
        match self.output:
            case Output.PROBABILITY:
                return _npy(np.stack(kept) if decoded.stack else kept[0])
            case Output.LAYERS:
                grey = decoded.slices[0]
                return _png(np.stack([grey, kept[0], np.zeros_like(grey)], axis=-1))
            case Output.OVERLAY:
                return _png(overlay(decoded.slices[0], kept[0]))
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

    height, width = kept[0].shape
    slices = [{"objects": contours(labels, spec.labels)} for labels in kept]
    values = {"width": width, "height": height, "threshold": spec.threshold, "slices": slices}
    return json.dumps(values, separators=(",", ":")).encode()
