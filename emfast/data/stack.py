"""Stacks of EM slices with their masks, from folders of images or multi-page TIFF files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emfast.data.image import (
    TIFF_SUFFIXES,
    Grey,
    read_image,
    read_pages,
    size_text,
    stack_slices,
    to_mask,
)
from emfast.data.reading import readable
from engines.errors import UserError

IMAGE_SUFFIXES = (*TIFF_SUFFIXES, ".png", ".bmp", ".jpg", ".jpeg")
# The names under which data sets store their slices and masks; the first slices found are taken,
# and no other masks than their own.
SOURCES = (
    ("images", "masks"),
    ("training.tif", "training_groundtruth.tif"),
    ("testing.tif", "testing_groundtruth.tif"),
)


@dataclass(frozen=True)
class Stack:
    """A stack of EM slices of one size, with or without masks.

    Attributes:
        images: uint8 (slices, height, width), greys in [0, 255].
        masks: uint8 of the same shape, 0 background and 1 object, or None.
        names: one name a slice, without suffix; unique.
        source: where the slices came from.
    """

    images: Grey
    masks: Grey | None
    names: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Sequence[int]) -> Stack:
        """The slices at ``indices``, in that order."""
        chosen = list(indices)
        return Stack(
            images=self.images[chosen],
            masks=None if self.masks is None else self.masks[chosen],
            names=tuple(self.names[i] for i in chosen),
            source=self.source,
        )

    def labels(self) -> Grey:
        """The masks, or a :class:`UserError` where the stack has none."""
        if self.masks is None:
            raise UserError(
                f"{self.source}: no masks found; expected {' or '.join(m for _, m in SOURCES)} "
                "beside the images (emfast train also takes others, with --masks)"
            )
        return self.masks


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name; :class:`UserError` where there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    with readable(folder):
        paths = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        )
    if not paths:
        raise UserError(f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return paths


def read_slices(source: Path) -> tuple[Grey, tuple[str, ...]]:
    """Read a folder of images, a multi-page TIFF or a single image.

    Returns:
        uint8 (slices, height, width) and one name a slice: the file's, for a page with the
        page's number behind it, as in training0000.

    Raises:
        UserError: nothing there, unreadable files or different sizes.
    """
    if source.is_dir():
        paths = list_images(source)
        names = tuple(p.stem for p in paths)
        if len(set(names)) != len(names):
            raise UserError(f"{source}: holds several files of one name with different suffixes")
        return stack_slices([(str(p), read_image(p)) for p in paths]), names
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if source.suffix.lower() in TIFF_SUFFIXES:
        pages = read_pages(source)
        return pages, tuple(f"{source.stem}{i:04d}" for i in range(len(pages)))
    return read_image(source)[None], (source.stem,)


def read_stack(source: Path, masks: Path | None = None) -> Stack:
    """Read a stack with its masks.

    Args:
        source: a folder that holds ``images/`` and ``masks/`` or ``training.tif`` and
            ``training_groundtruth.tif`` (also one level down, in ``training/``), or a bare folder
            of slices, multi-page TIFF or single image.
        masks: where the masks are, when they are not beside the images. A folder of masks is
            matched to the slices by name and may cover a part of them: the rest is left out. It
            may be a TIFF, or belong to a TIFF with other names, if there are as many masks as
            slices.

    Raises:
        UserError: nothing there, unreadable files, sizes or names that do not match.
    """
    images_source, masks_source = find_sources(source)
    masks_source = masks or masks_source
    images, names = read_slices(images_source)
    if masks_source is None:
        return Stack(images, None, names, str(source))
    greys, mask_names = read_slices(masks_source)
    unknown = sorted(set(mask_names) - set(names))
    if masks_source.is_dir() and not unknown:
        if masks is None and len(mask_names) != len(names):
            missing = sorted(set(names) - set(mask_names))
            raise UserError(f"{masks_source}: no mask for slice {missing[0]}")
        images = images[[names.index(name) for name in mask_names]]
        names = mask_names
    elif masks_source.is_dir() and images_source.is_dir():
        raise UserError(f"{masks_source}: no slice in {images_source} for mask {unknown[0]}")
    if greys.shape != images.shape:
        raise UserError(
            f"{masks_source}: {len(greys)} masks of {size_text(greys)} pixels, but "
            f"{images_source} has {len(images)} slices of {size_text(images)}"
        )
    return Stack(images, to_mask(greys, str(masks_source)), names, str(source))


def find_sources(source: Path) -> tuple[Path, Path | None]:
    """Where :func:`read_stack` finds the slices and the masks of ``source``, if it has any."""
    if not source.is_dir():
        return source, None
    for folder in (source, source / "training"):
        for images, masks in SOURCES:
            if (folder / images).exists():
                return folder / images, folder / masks if (folder / masks).exists() else None
    return source, None
