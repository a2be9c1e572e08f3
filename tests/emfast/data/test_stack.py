from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from emfast.data.image import read_image, read_pages, to_grey, to_mask
from emfast.data.stack import find_sources, list_images, read_slices, read_stack
from emfast.data.summary import summarize
from engines.errors import UserError

GENERATOR = np.random.default_rng(0)
SLICES = GENERATOR.integers(0, 256, (5, 48, 64), dtype=np.uint8)
MASKS = (SLICES > 128).astype(np.uint8)


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    assert mode is None or image.mode == mode
    image.save(path)
    return path


def write_folder(folder: Path, slices: np.ndarray, first: int = 0) -> Path:
    for i, array in enumerate(slices, start=first):
        save(folder / f"training{i:04d}.png", array)
    return folder


@pytest.fixture
def epfl_like(tmp_path: Path) -> Path:
    root = tmp_path / "epfl"
    write_folder(root / "training" / "images", SLICES)
    write_folder(root / "training" / "masks", MASKS * 255)
    return root


# One image


def test_equal_colour_channels_are_merged(tmp_path: Path) -> None:
    path = save(tmp_path / "rgb.png", np.stack([SLICES[0]] * 3, axis=-1), "RGB")
    assert np.array_equal(read_image(path), SLICES[0])


def test_colours_that_differ_are_refused(tmp_path: Path) -> None:
    rgb = np.stack([SLICES[0]] * 3, axis=-1)
    rgb[3, 4, 1] ^= 1
    with pytest.raises(UserError, match=r"rgb\.png: is a colour image"):
        read_image(save(tmp_path / "rgb.png", rgb))


@pytest.mark.parametrize("channels", [1, 3])
def test_opaque_alpha_is_dropped(tmp_path: Path, channels: int) -> None:
    opaque = np.full_like(SLICES[0], 255)
    array = np.stack([SLICES[0]] * channels + [opaque], axis=-1)
    assert np.array_equal(read_image(save(tmp_path / "a.png", array)), SLICES[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_refused(tmp_path: Path, channels: int) -> None:
    alpha = np.full_like(SLICES[0], 255)
    alpha[0, 0] = 254
    array = np.stack([SLICES[0]] * channels + [alpha], axis=-1)
    with pytest.raises(UserError, match="transparent pixels"):
        read_image(save(tmp_path / "a.png", array))


def test_a_transparent_grey_level_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keyed.png"
    Image.fromarray(SLICES[0]).save(path, transparency=int(SLICES[0, 0, 0]))
    with pytest.raises(UserError, match="transparent pixels"):
        read_image(path)


def test_a_grey_palette_is_resolved_and_a_coloured_one_refused(tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.fromarray(SLICES[0] // 16 * 16).convert("P").save(grey)
    assert np.array_equal(read_image(grey), SLICES[0] // 16 * 16)
    palette = Image.fromarray(SLICES[0] % 2).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "red.png")
    with pytest.raises(UserError, match="colour image"):
        read_image(tmp_path / "red.png")


def test_one_bit_masks_are_0_and_255(tmp_path: Path) -> None:
    path = tmp_path / "bits.png"
    Image.fromarray(MASKS[0] * 255).convert("1", dither=Image.Dither.NONE).save(path)
    assert np.array_equal(read_image(path), MASKS[0] * 255)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_within_255_is_accepted_and_beyond_refused(tmp_path: Path, suffix: str) -> None:
    wide = SLICES[0].astype(np.uint16)
    assert np.array_equal(read_image(save(tmp_path / f"a{suffix}", wide)), SLICES[0])
    wide[5, 6] = 256
    with pytest.raises(UserError, match=r"values from 0 to 256.*rescale it to 8-bit"):
        read_image(save(tmp_path / f"b{suffix}", wide))


def test_float_and_negative_values_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    tifffile.imwrite(path, SLICES[0] / 255)
    with pytest.raises(UserError, match=r"holds float64 values.*cannot be known"):
        read_image(path)
    tifffile.imwrite(path, SLICES[0].astype(np.int16) - 300)
    with pytest.raises(UserError, match="holds int16 values from -300"):
        read_image(path)


@pytest.mark.parametrize("shape", [(4,), (0, 5), (2, 3, 4, 5), (3, 4, 5)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="expected one image"):
        to_grey(np.zeros(shape, np.uint8), "x")


def test_a_truncated_png_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.png", SLICES[0])
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"cut\.png: cannot be read, truncated or damaged"):
        read_image(path)


@pytest.mark.parametrize("name", ["text.png", "text.tif", "empty.png", "empty.tif"])
def test_files_that_are_no_images_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("not an image" if "text" in name else "")
    with pytest.raises(UserError, match=rf"{name}: (is not an image|cannot be read)"):
        read_image(path)


@pytest.mark.parametrize("name", ["none.png", "none.tif"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: no such file"):
        read_image(tmp_path / name)


def test_an_image_of_many_pixels_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "large.png", SLICES[0])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="more pixels than are read"):
        read_image(path)


def test_masks_have_at_most_one_value_besides_0() -> None:
    assert np.array_equal(to_mask(MASKS[0] * np.uint8(7), "m"), MASKS[0])
    with pytest.raises(UserError, match=r"has 3 different values \(0 to 9\)"):
        to_mask(np.array([[0, 4, 9]], np.uint8), "m")


# Pages


@pytest.mark.parametrize("layout", ["contiguous", "separate", "zlib", "bigtiff", "imagej"])
def test_a_multi_page_tiff_is_read_and_a_truncated_one_refused(
    tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "stack.tif"
    with tifffile.TiffWriter(path, bigtiff=layout == "bigtiff", imagej=layout == "imagej") as tiff:
        if layout == "separate":
            for page in SLICES:
                tiff.write(page, contiguous=False)
        else:
            tiff.write(SLICES, compression="zlib" if layout == "zlib" else None)
    assert np.array_equal(read_pages(path), SLICES)

    whole = path.read_bytes()
    for part in (0.01, 0.3, 0.6, 0.9, 0.98):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(UserError, match=r"stack\.tif: .*truncated or damaged"):
            read_pages(path)
    assert not caplog.records
    assert not logging.getLogger("tifffile").disabled


def test_white_is_zero_is_inverted(tmp_path: Path) -> None:
    path = tmp_path / "inverted.tif"
    tifffile.imwrite(path, SLICES, photometric="miniswhite")
    assert np.array_equal(read_pages(path), 255 - SLICES)


def test_a_tiff_palette_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "palette.tif"
    colours = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(path, SLICES[0], photometric="palette", colormap=colours)
    with pytest.raises(UserError, match=r"palette\.tif page 0: has a colour palette"):
        read_pages(path)


def test_a_compression_without_decoder_says_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "lzw.tif"
    Image.fromarray(SLICES[0]).save(path, compression="tiff_lzw")
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install imagecodecs"):
            read_pages(path)
    else:
        assert np.array_equal(read_pages(path)[0], SLICES[0])


def test_a_page_of_another_size_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mixed.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(SLICES[0])
        tiff.write(SLICES[1, :40])
    with pytest.raises(UserError, match=r"page 1: is 64 x 40 pixels, but .*page 0 is 64 x 48"):
        read_pages(path)


def test_a_stack_is_not_a_single_image(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, SLICES)
    with pytest.raises(UserError, match="holds 5 pages; expected a single image"):
        read_image(path)


# Stacks


def test_a_folder_of_slices_and_masks(epfl_like: Path) -> None:
    for source in (epfl_like, epfl_like / "training"):
        stack = read_stack(source)
        assert np.array_equal(stack.images, SLICES)
        assert stack.masks is not None
        assert np.array_equal(stack.labels(), MASKS)
        assert stack.names == tuple(f"training{i:04d}" for i in range(5))
        assert len(stack) == 5 and stack.source == str(source)
    chosen = stack.select([3, 1])
    assert chosen.names == ("training0003", "training0001")
    assert np.array_equal(chosen.labels(), MASKS[[3, 1]])


def test_the_published_tiff_pair(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "training.tif", SLICES)
    tifffile.imwrite(tmp_path / "training_groundtruth.tif", MASKS * 255)
    tifffile.imwrite(tmp_path / "testing.tif", SLICES[::-1])
    stack = read_stack(tmp_path)
    assert np.array_equal(stack.images, SLICES)
    assert np.array_equal(stack.labels(), MASKS)
    assert stack.names[3] == "training0003"


def test_testing_slices_never_get_training_masks(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "testing.tif", SLICES)
    tifffile.imwrite(tmp_path / "training_groundtruth.tif", MASKS * 255)
    assert find_sources(tmp_path) == (tmp_path / "testing.tif", None)
    assert read_stack(tmp_path).masks is None


def test_a_masks_folder_may_cover_a_part(epfl_like: Path, tmp_path: Path) -> None:
    part = write_folder(tmp_path / "part", MASKS[1:3], first=1)
    stack = read_stack(epfl_like, part)
    assert stack.names == ("training0001", "training0002")
    assert np.array_equal(stack.images, SLICES[1:3])
    assert np.array_equal(stack.labels(), MASKS[1:3])


def test_a_masks_folder_may_cover_a_part_of_a_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "training.tif", SLICES)
    part = write_folder(tmp_path / "part", MASKS[2:4] * 255, first=2)
    stack = read_stack(tmp_path / "training.tif", part)
    assert np.array_equal(stack.images, SLICES[2:4])
    assert np.array_equal(stack.labels(), MASKS[2:4])


def test_a_tiff_takes_as_many_masks_of_other_names(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "volume.tif", SLICES)
    masks = write_folder(tmp_path / "labels", MASKS)
    assert np.array_equal(read_stack(tmp_path / "volume.tif", masks).labels(), MASKS)
    (masks / "training0004.png").unlink()
    with pytest.raises(UserError, match=r"4 masks of 64 x 48 pixels, but .* 5 slices of 64 x 48"):
        read_stack(tmp_path / "volume.tif", masks)


def test_a_mask_without_its_slice_is_named(epfl_like: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", MASKS[:1], first=9)
    with pytest.raises(UserError, match=r"no slice in .* for mask training0009"):
        read_stack(epfl_like, other)


def test_a_slice_without_its_mask_is_named(epfl_like: Path) -> None:
    (epfl_like / "training" / "masks" / "training0002.png").unlink()
    with pytest.raises(UserError, match="no mask for slice training0002"):
        read_stack(epfl_like)


def test_masks_of_another_size_are_refused(epfl_like: Path, tmp_path: Path) -> None:
    small = write_folder(tmp_path / "small", MASKS[:, :40])
    with pytest.raises(
        UserError, match=r"5 masks of 64 x 40 pixels, but .* has 5 slices of 64 x 48"
    ):
        read_stack(epfl_like, small)


def test_grey_levels_are_no_masks(epfl_like: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a mask has 0 for background and one other value"):
        read_stack(epfl_like, write_folder(tmp_path / "greys", SLICES))


def test_slices_of_different_sizes_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, SLICES[:2])
    save(tmp_path / "z.png", SLICES[2, :, :60])
    with pytest.raises(UserError, match=r"z\.png: is 60 x 48 pixels, but .*training0000\.png"):
        read_stack(tmp_path)


def test_a_stack_without_masks_says_so_when_asked(tmp_path: Path) -> None:
    stack = read_stack(write_folder(tmp_path, SLICES))
    assert stack.masks is None
    with pytest.raises(UserError, match=r"no masks found; .*--masks"):
        stack.labels()


def test_a_single_image_is_a_stack_of_one(tmp_path: Path) -> None:
    stack = read_stack(save(tmp_path / "one.png", SLICES[0]))
    assert stack.images.shape == (1, 48, 64) and stack.names == ("one",)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        read_stack(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no images"):
        read_stack(tmp_path)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        list_images(tmp_path / "nowhere")


def test_one_name_with_two_suffixes_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", SLICES[0])
    save(tmp_path / "a.tif", SLICES[0])
    with pytest.raises(UserError, match="several files of one name"):
        read_slices(tmp_path)


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    write_folder(tmp_path, SLICES[:2])
    (tmp_path / "._training0000.png").write_bytes(b"resource fork")
    (tmp_path / "notes.txt").write_text("notes")
    assert len(read_stack(tmp_path)) == 2


def test_the_summary_counts_every_pixel(epfl_like: Path) -> None:
    summary = summarize(read_stack(epfl_like))
    assert (summary.slices, summary.height, summary.width) == (5, 48, 64)
    assert summary.grey_mean == pytest.approx(SLICES.mean())
    assert summary.grey_deviation == pytest.approx(SLICES.std())
    assert summary.coverage == pytest.approx(MASKS.mean())
    assert summarize(read_stack(epfl_like / "training" / "images")).coverage is None


def test_three_slices_saved_as_colour_planes_are_refused(tmp_path: Path) -> None:
    """What tifffile makes of three slices when it is not told that they are grey."""
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((3, 8, 8), np.uint8), photometric="rgb")
    with pytest.raises(UserError, match="3 planes of one colour image; save every slice"):
        read_stack(tmp_path / "s.tif")
