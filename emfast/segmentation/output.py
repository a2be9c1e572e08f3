"""Segmenting image files into files of masks of the same layout and names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from emfast.data.image import TIFF_SUFFIXES
from emfast.data.slices import Slices, open_slices
from emfast.data.stack import find_sources
from emfast.pictures import overlay as draw_overlay
from emfast.progress import progress
from emfast.segmentation.preprocessing import SegmenterSpec, Uint8
from emfast.segmentation.segmenter import Segmenter
from engines.errors import UserError
from engines.files import atomic_write

MASKS = "masks"
OVERLAYS = "overlays"
RECORD = "segment.json"

WriteMask = Callable[[int, Uint8], None]


@dataclass(frozen=True)
class Segmented:
    """What a run wrote.

    Attributes:
        slices: number of slices.
        masks: the folder of masks, or the TIFF or single image where the input is one.
        overlays: the folder of overlays, or None.
        coverage: share of all pixels, in [0, 1], that each class has.
    """

    slices: int
    masks: Path
    overlays: Path | None
    coverage: dict[str, float]


def segment_files(
    source: Path,
    out: Path,
    segmenter: Segmenter,
    overlay: bool = False,
) -> Segmented:
    """Segment one image, a folder or a TIFF stack, slice by slice.

    Written into ``out``:

    - ``masks/``: for a TIFF one TIFF of the same name and number of pages, for other images one
      file each, of the same name, as PNG (TIFF where the image is one). Values are 0 and 255 for
      a segmenter of one class, else 0 and the labels from 1.
    - ``overlays/``: on request, an RGB PNG a slice with the masks outlined.
    - ``segment.json``: input, model, engine, threshold and coverage. It is there from the start,
      with ``complete`` false until everything is written.

    Files of an earlier run are replaced.

    Args:
        source: a single image, a folder of images, a multi-page TIFF, or a folder that holds one
            of these beside its masks, as :func:`~emfast.data.stack.find_sources` finds them.
        out: the folder to write to; made if missing.
        segmenter: an open one.
        overlay: whether to draw overlays.

    Raises:
        UserError: unreadable input, an ``out`` that belongs to the input or holds masks that
            this function did not write, or a folder that cannot be written.
    """
    images = find_sources(source)[0]
    with open_slices(images) as slices:
        _check_out(out, source, images)
        _make_folders(out, overlay)
        record = _record(source, len(slices), segmenter)
        _write_record(out, record)
        pixels = 0
        counts = np.zeros(segmenter.spec.classes + 1, dtype=np.int64)
        with (
            _mask_writer(images, out / MASKS, slices) as write_mask,
            progress("segment", len(slices)) as advance,
        ):
            for index, name in enumerate(slices.names):
                image = slices.read(index)
                labels = segmenter.segment(image[None])[0]
                write_mask(index, mask_values(labels, segmenter.spec))
                if overlay:
                    _save(out / OVERLAYS / f"{name}.png", draw_overlay(image, labels))
                counts += np.bincount(labels.ravel(), minlength=len(counts))
                pixels += labels.size
                advance()
        masks = _mask_path(images, out / MASKS) if images.is_file() else out / MASKS
        shares = (int(count) / pixels for count in counts[1:])
        coverage = dict(zip(segmenter.spec.labels, shares, strict=True))
        _write_record(out, {**record, "coverage": coverage, "complete": True})
    return Segmented(len(slices), masks, out / OVERLAYS if overlay else None, coverage)


def mask_values(labels: Uint8, spec: SegmenterSpec) -> Uint8:
    """Labels as mask files hold them: 0 and 255 for one class, else unchanged."""
    return labels * np.uint8(255) if spec.classes == 1 else labels


def _check_out(out: Path, source: Path, images: Path) -> None:
    """Refuse to write over the input or over masks that no segmentation wrote."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder to write the masks to")
    read = images.resolve() if images.is_dir() else images.resolve().parent
    if out.resolve() in (source.resolve(), images.resolve()) or read in (
        (out / MASKS).resolve(),
        (out / OVERLAYS).resolve(),
    ):
        raise UserError(f"{out}: is the input itself; give another folder to write the masks to")
    masks = out / MASKS
    if masks.is_dir() and any(masks.iterdir()) and not (out / RECORD).exists():
        raise UserError(
            f"{masks}: holds files that emfast segment did not write (no {RECORD} beside it), "
            "perhaps labels; give another folder"
        )


def _make_folders(out: Path, overlay: bool) -> None:
    try:
        for folder in (MASKS, OVERLAYS) if overlay else (MASKS,):
            (out / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror or error})") from None


def _record(source: Path, slices: int, segmenter: Segmenter) -> dict[str, Any]:
    spec = segmenter.spec
    values = [255] if spec.classes == 1 else range(1, spec.classes + 1)
    return {
        "input": str(source),
        "slices": slices,
        "bundle": {"name": segmenter.bundle.manifest.name, "sha256": segmenter.bundle.sha256},
        "engine": segmenter.info.to_dict(),
        "passed_over": list(segmenter.passed_over),
        "threshold": spec.threshold,
        "values": dict(zip(spec.labels, values, strict=True)),
        "complete": False,
    }


def _write_record(out: Path, record: dict[str, Any]) -> None:
    with atomic_write(out / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _mask_writer(images: Path, folder: Path, slices: Slices) -> Iterator[WriteMask]:
    """What writes the mask of each slice, in order."""
    if images.is_dir() or images.suffix.lower() not in TIFF_SUFFIXES:
        yield lambda index, mask: _save(_mask_path(slices.files[index], folder), mask)
        return
    height, width = slices.read(0).shape
    # Classic TIFF ends at 4 GiB. Masks compress well, but how well is not known beforehand.
    bigtiff = len(slices) * height * width >= 2**32
    with (
        atomic_write(_mask_path(images, folder)) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=bigtiff) as tiff,
    ):
        yield lambda index, mask: _write_page(tiff, mask)


def _mask_path(file: Path, folder: Path) -> Path:
    """Where the mask of an image file goes: TIFF stays TIFF, all else becomes lossless PNG."""
    return folder / (file.name if file.suffix.lower() in TIFF_SUFFIXES else f"{file.stem}.png")


def _save(path: Path, pixels: Uint8) -> None:
    with atomic_write(path) as temporary:
        if path.suffix.lower() in TIFF_SUFFIXES:
            with tifffile.TiffWriter(temporary) as tiff:
                _write_page(tiff, pixels)
        else:
            Image.fromarray(pixels).save(temporary, format="PNG")


def _write_page(tiff: tifffile.TiffWriter, mask: Uint8) -> None:
    tiff.write(mask, photometric="minisblack", compression="zlib", metadata=None)
