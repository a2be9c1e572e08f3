from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from emfast.data.slices import open_slices
from emfast.data.stack import read_slices
from engines.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 6, 8), dtype=np.uint8)


def write(source: Path) -> Path:
    if source.suffix == ".tif":
        tifffile.imwrite(source, IMAGES, photometric="minisblack")
    elif source.suffix == ".png":
        Image.fromarray(IMAGES[0]).save(source)
    else:
        source.mkdir()
        for i, image in enumerate(IMAGES):
            Image.fromarray(image).save(source / f"slice{i}.png")
    return source


@pytest.mark.parametrize("name", ["folder", "stack.tif", "slice.png"])
def test_same_slices_as_read_at_once(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name)
    images, names = read_slices(source)
    with open_slices(source) as slices:
        assert slices.names == names
        assert len(slices) == len(slices.files) == len(images)
        for i in reversed(range(len(images))):
            np.testing.assert_array_equal(slices.read(i), images[i])


def test_inverted_and_bilevel_tiffs(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "white.tif", ~IMAGES, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "bits.tif", IMAGES > 127, photometric="minisblack")
    with open_slices(tmp_path / "white.tif") as slices:
        np.testing.assert_array_equal(slices.read(1), IMAGES[1])
    with open_slices(tmp_path / "bits.tif") as slices:
        np.testing.assert_array_equal(slices.read(1), (IMAGES[1] > 127) * np.uint8(255))


def test_folders_may_hold_several_sizes(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")
    Image.fromarray(IMAGES[0, :2, :3]).save(folder / "small.png")
    with open_slices(folder) as slices:
        assert slices.read(3).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no such file or folder"),
        ("nothing.tif", "no such file or folder"),
        ("empty", "holds no images"),
        ("twice", "several files of one name"),
        ("sizes.tif", "pages of 6 x 6 and of 8 x 6 pixels"),
        ("text.tif", "cannot be read"),
    ],
)
def test_sources_that_are_no_slices(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    twice = write(tmp_path / "twice")
    (twice / "slice0.jpg").write_bytes((twice / "slice0.png").read_bytes())
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as tiff:
        for image in (IMAGES[0], IMAGES[0, :, :6]):
            tiff.write(image, photometric="minisblack", metadata=None)
    (tmp_path / "text.tif").write_text("no TIFF at all")
    with pytest.raises(UserError, match=message), open_slices(tmp_path / name):
        pass


def test_damage_is_told_with_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")
    pixels = (folder / "slice1.png").read_bytes()
    (folder / "slice1.png").write_bytes(pixels[: len(pixels) // 2])
    with open_slices(folder) as slices:
        slices.read(0)
        with pytest.raises(UserError, match=r"slice1\.png: cannot be read, truncated or damaged"):
            slices.read(1)
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, IMAGES, photometric="minisblack", compression="deflate")
    content = bytearray(stack.read_bytes())
    with tifffile.TiffFile(stack) as tiff:
        page: tifffile.TiffPage = tiff.pages[1].aspage()
        start = page.dataoffsets[0]
    content[start : start + 20] = bytes(20)
    stack.write_bytes(content)
    with open_slices(stack) as slices:
        slices.read(0)
        with pytest.raises(UserError, match=r"stack\.tif: cannot be read, truncated or damaged"):
            slices.read(1)


def test_errors_of_the_caller_pass_through(tmp_path: Path) -> None:
    """Only what reading raises is about the file."""
    with pytest.raises(ZeroDivisionError), open_slices(write(tmp_path / "stack.tif")):
        _ = 1 / np.zeros((), dtype=int).item()


def test_colour_pages_are_named(tmp_path: Path) -> None:
    rgb: npt.NDArray[np.uint8] = np.stack([IMAGES, IMAGES[::-1], IMAGES], axis=-1)
    tifffile.imwrite(tmp_path / "colour.tif", rgb, photometric="rgb")
    with (
        open_slices(tmp_path / "colour.tif") as slices,
        pytest.raises(UserError, match=r"colour\.tif page 0: is a colour image"),
    ):
        slices.read(0)
