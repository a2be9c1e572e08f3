"""Where a run writes, and what it must not write over."""

from __future__ import annotations

from pathlib import Path

from emfast.segmentation.record import RECORD
from emfast.volumes import VolumeReader
from engines.errors import UserError

MASKS = "masks"
PROBABILITY = "probability"
LABELS = "labels"
OVERLAYS = "overlays"


def check_out(out: Path, reader: VolumeReader) -> None:
    """Refuse to write over the input, and where no folder can be.

    Raises:
        UserError: ``out`` is the input, a file or below one, or cannot be reached.
    """
    try:
        there = next(path for path in (out, *out.parents) if path.exists())
        if not there.is_dir():
            raise UserError(f"{there}: is a file; give a folder to write the masks to")
        path = reader.path.resolve()
        read = path if path.is_dir() else path.parent
        written = {(out / name).resolve() for name in (MASKS, PROBABILITY, LABELS, OVERLAYS)}
    except (OSError, RuntimeError) as error:  # links in a circle are the latter up to Python 3.12
        reason = error.strerror if isinstance(error, OSError) else "links in a circle"
        raise UserError(f"{out}: cannot be written ({reason})") from None
    if out.resolve() == path or read in written:
        raise UserError(f"{out}: is the input itself; give another folder to write the masks to")


def check_masks(out: Path) -> None:
    """Refuse to write over masks that no segmentation wrote."""
    for name in (MASKS, PROBABILITY, LABELS):
        folder = out / name
        # The description is there before the first mask, also that of a shard just begun.
        if folder.is_dir() and any(folder.iterdir()) and not (out / RECORD).exists():
            raise UserError(
                f"{folder}: holds files that emfast segment did not write (no {RECORD} beside "
                "it), perhaps labels; give another folder"
            )
