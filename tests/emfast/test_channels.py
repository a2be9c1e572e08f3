from __future__ import annotations

import numpy as np
import pytest

from emfast.channels import (
    Channel,
    clip_range,
    decode,
    encode,
    standard_channels,
    symmetric_channels,
)
from engines.errors import UserError


@pytest.mark.parametrize(
    "channels",
    [standard_channels(140.5, 30.4), standard_channels(120, 20, 3), symmetric_channels(2, 1)],
)
def test_decode_is_the_inverse_of_encode(channels: tuple[Channel, ...]) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 8, 8), dtype=np.uint8)
    classes = sum(c.kind == "mask" for c in channels)
    masks = rng.integers(0, classes + 1, (2, 8, 8), dtype=np.uint8)
    x = encode(channels, images, masks)
    assert x.dtype == np.float32
    assert x.shape == (2, len(channels), 8, 8)
    low, high = clip_range(channels)
    assert (x >= low[None, :, None, None] - 1e-6).all()
    assert (x <= high[None, :, None, None] + 1e-6).all()
    decoded_images, decoded_masks = decode(channels, x)
    assert (decoded_images == images).all()
    assert (decoded_masks == masks).all()


def test_standard_channels_have_deviation_one_half() -> None:
    channels = standard_channels(100.0, 25.0)
    images = np.array([[[75, 125]]], dtype=np.uint8)
    x = encode(channels, images, np.array([[[0, 1]]], dtype=np.uint8))
    assert x.tolist() == [[[[-0.5, 0.5]], [[-0.5, 0.5]]]]


def test_greys_beyond_the_range_are_cut() -> None:
    images, masks = decode(symmetric_channels(1, 1), np.array([[[[-3.0]], [[3.0]]]], np.float32))
    assert images.item() == 0
    assert masks.item() == 1


def test_malformed_channels_are_refused() -> None:
    values = standard_channels(100, 25)[0].to_dict()
    assert Channel.from_dict(values) == standard_channels(100, 25)[0]
    with pytest.raises(UserError, match="unknown kind"):
        Channel.from_dict({**values, "kind": "depth"})
    with pytest.raises(UserError, match="missing or malformed"):
        Channel.from_dict({"kind": "image"})
