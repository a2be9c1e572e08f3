from __future__ import annotations

from dataclasses import replace

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
    decoded_images, decoded_masks = decode([replace(c, median=1) for c in channels], x)
    assert (decoded_images == images).all()
    assert (decoded_masks == masks).all()


def test_standard_channels_have_deviation_one_half() -> None:
    channels = standard_channels(100.0, 25.0)
    images = np.array([[[75, 125]]], dtype=np.uint8)
    x = encode(channels, images, np.array([[[0, 1]]], dtype=np.uint8))
    assert x.tolist() == [[[[-0.5, 0.5]], [[-0.5, 0.5]]]]


def test_masks_are_decoded_with_a_median() -> None:
    channels = standard_channels(140.0, 30.0, 2)
    masks = np.zeros((1, 32, 32), dtype=np.uint8)
    yy, xx = np.mgrid[:32, :32]
    masks[0][(yy - 10) ** 2 + (xx - 12) ** 2 <= 45] = 1
    masks[0, 20:, 24:] = 2  # touches two borders and a corner
    smooth = masks.copy()
    smooth[0, 20, 24] = 0  # a right angle loses its tip
    noisy = masks.copy()
    noisy[0, 10, 12], noisy[0, 0, 0], noisy[0, 0, 17], noisy[0, 31, 31] = 0, 1, 2, 0
    for given in (masks, noisy):
        _, decoded = decode(channels, encode(channels, np.zeros_like(given), given))
        assert (decoded == smooth).all()


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
    with pytest.raises(UserError, match="median 2; accepted: odd numbers from 1"):
        Channel.from_dict({**values, "median": 2})


def test_channels_of_earlier_bundles_have_no_median() -> None:
    values = standard_channels(100, 25)[1].to_dict()
    del values["median"]
    assert Channel.from_dict(values).median == 1
