"""What each channel of a denoiser holds, and its scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from engines.errors import UserError

Uint8 = npt.NDArray[np.uint8]
# Side of the median that a mask is decoded with. What a network draws near 1/2 crosses it pixel by
# pixel: most objects under 64 pixels that the shipped denoiser drew were single pixels. Annotated
# outlines are smoother than the filter: EPFL's masks keep a Dice of 0.9994 under it.
MASK_MEDIAN = 3


@dataclass(frozen=True)
class Channel:
    """One channel of a denoiser.

    Attributes:
        kind: "image", grey levels in [0, 255], or "mask", 0 or 1. Several image channels hold the
            same image (the seed's network has two) and are averaged when decoded.
        label: the class that a mask channel shows, from 1; 0 for an image channel.
        offset, scale: value = offset + scale * x for the standardised x that the network sees.
        clip: lowest and highest x; sampling keeps its estimate of the clean image inside.
        median: side in pixels of the median filter that a mask channel is decoded with; 1 is none.
    """

    kind: Literal["image", "mask"]
    label: int
    offset: float
    scale: float
    clip: tuple[float, float]
    median: int = 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Channel:
        """The inverse of :meth:`to_dict`; :class:`UserError` for malformed entries."""
        try:
            low, high = (float(v) for v in values["clip"])
            channel = cls(
                values["kind"],
                int(values["label"]),
                float(values["offset"]),
                float(values["scale"]),
                (low, high),
                int(values.get("median", 1)),  # bundles of before have none
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"channel: missing or malformed entry ({error})") from None
        if channel.kind not in ("image", "mask"):
            raise UserError(f"channel: unknown kind {channel.kind!r}; accepted: image, mask")
        if channel.median < 1 or channel.median % 2 == 0:
            raise UserError(f"channel: median {channel.median}; accepted: odd numbers from 1")
        return channel


def standard_channels(mean: float, deviation: float, classes: int = 1) -> tuple[Channel, ...]:
    """One image channel of standard deviation 1/2, and a mask channel of -1/2 and 1/2 a class.

    Masks are decoded with a median of :data:`MASK_MEDIAN` pixels.

    Args:
        mean, deviation: of the training images' greys, in [0, 255].
        classes: number of mask channels.

    Raises:
        UserError: a deviation of 0.
    """
    if deviation <= 0:
        raise UserError("the training images are of one grey level; there is nothing to learn")
    scale = 2 * deviation
    image = Channel("image", 0, mean, scale, ((0 - mean) / scale, (255 - mean) / scale))
    return (
        image,
        *(Channel("mask", k, 0.5, 1.0, (-0.5, 0.5), MASK_MEDIAN) for k in range(1, classes + 1)),
    )


def symmetric_channels(images: int, classes: int) -> tuple[Channel, ...]:
    """Image, then mask channels, all with x from -1 to 1, as in the seed paper's RGB pairs."""
    image = Channel("image", 0, 127.5, 127.5, (-1.0, 1.0))
    masks = (Channel("mask", k, 0.5, 0.5, (-1.0, 1.0)) for k in range(1, classes + 1))
    return (*[image] * images, *masks)


def clip_range(channels: Sequence[Channel]) -> npt.NDArray[np.float32]:
    """Lowest and highest x of each channel, float32 (2, channels)."""
    return np.array([c.clip for c in channels], dtype=np.float32).T.copy()


def encode(channels: Sequence[Channel], images: Uint8, masks: Uint8) -> npt.NDArray[np.float32]:
    """Standardise pairs for the network.

    Args:
        channels: of the denoiser.
        images: uint8 (batch, height, width), greys in [0, 255].
        masks: uint8, same shape, 0 for background or the label of a class.

    Returns:
        float32 (batch, len(channels), height, width).
    """
    x = np.empty((len(images), len(channels), *images.shape[1:]), dtype=np.float32)
    for i, channel in enumerate(channels):
        x[:, i] = images if channel.kind == "image" else masks == channel.label
        x[:, i] -= channel.offset
        x[:, i] /= channel.scale
    return x


def decode(channels: Sequence[Channel], x: npt.NDArray[np.float32]) -> tuple[Uint8, Uint8]:
    """Turn network channels into pairs.

    Args:
        channels: of the denoiser.
        x: float32 (batch, len(channels), height, width).

    Returns:
        Images, uint8 (batch, height, width) in [0, 255], and masks, uint8 of that shape: the
        label of the class whose value is largest and at least 1/2, or else 0.
    """
    greys = [c.offset + c.scale * x[:, i] for i, c in enumerate(channels) if c.kind == "image"]
    images = np.clip(np.rint(np.mean(greys, axis=0)), 0, 255).astype(np.uint8)
    masks = np.zeros(images.shape, dtype=np.uint8)
    best = np.full(images.shape, 0.5, dtype=np.float32)
    for i, channel in enumerate(channels):
        if channel.kind == "mask":
            value = channel.offset + channel.scale * x[:, i]
            if channel.median > 1:
                # Mirrored, a pixel in a corner counts once, as everywhere.
                window = (1, channel.median, channel.median)
                value = ndimage.median_filter(value, window, mode="mirror")
            larger = value >= best
            masks[larger] = channel.label
            best[larger] = value[larger]
    return images, masks
