from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emfast.data.pairs import decode_pair, encode_pair, read_pair, write_pair
from engines.errors import UserError


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (24, 32), dtype=np.uint8)
    return image, (image > 200).astype(np.uint8)


def test_channels_are_image_image_mask(pair: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = pair
    rgb = encode_pair(image, mask)
    assert rgb.shape == (24, 32, 3) and rgb.dtype == np.uint8
    assert np.array_equal(rgb[..., 0], image)
    assert np.array_equal(rgb[..., 1], image)
    assert np.array_equal(rgb[..., 2], mask * 255)


def test_a_file_gives_back_what_was_written(
    tmp_path: Path, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    path = tmp_path / "pair.png"
    write_pair(path, *pair)
    with Image.open(path) as opened:
        assert opened.mode == "RGB" and opened.format == "PNG"
    image, mask = read_pair(path)
    assert np.array_equal(image, pair[0])
    assert np.array_equal(mask, pair[1])
    assert [p.name for p in tmp_path.iterdir()] == ["pair.png"]


@pytest.mark.parametrize("value", [1, 128, 255])
def test_any_single_object_value_is_a_mask(value: int) -> None:
    rgb = np.full((4, 4, 3), 90, dtype=np.uint8)
    rgb[..., 2] = 0
    rgb[1, 2, 2] = value
    _, mask = decode_pair(rgb)
    assert mask.sum() == 1 and mask[1, 2] == 1


def test_an_empty_mask_is_a_mask() -> None:
    assert decode_pair(np.zeros((4, 4, 3), dtype=np.uint8))[1].sum() == 0


def test_a_blue_channel_with_grey_levels_is_refused() -> None:
    rgb = np.full((4, 4, 3), 90, dtype=np.uint8)
    rgb[0, :, 2] = (0, 3, 250, 255)
    with pytest.raises(UserError, match=r"x\.png, blue channel: has 5 different values"):
        decode_pair(rgb, "x.png")


def test_red_and_green_that_differ_are_refused() -> None:
    rgb = np.zeros((4, 4, 3), dtype=np.uint8)
    rgb[0, 0, 0] = rgb[2, 3, 1] = 1
    with pytest.raises(UserError, match="red and green differ in 2 pixels"):
        decode_pair(rgb)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_anything_but_8_bit_rgb_is_refused(array: np.ndarray) -> None:
    with pytest.raises(UserError, match="8-bit RGB"):
        decode_pair(array)


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(UserError, match="5 x 4 pixels cannot be paired with a mask of 4 x 5"):
        encode_pair(np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8))


def test_a_16_bit_file_and_a_truncated_one_are_refused(
    tmp_path: Path, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    deep = tmp_path / "deep.png"
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(deep)
    with pytest.raises(UserError, match=r"deep\.png: holds .*8-bit RGB"):
        read_pair(deep)
    path = tmp_path / "pair.png"
    write_pair(path, *pair)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_pair(path)
