"""What a whole set has beside its images: its manifest, and what people and training code read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from emfast.data.image import read_image
from emfast.pictures import contact_sheet
from emfast.synthesis.card import CARD, CONTACT, card
from emfast.synthesis.manifest import MANIFEST, METADATA, file_name, line, metadata_line
from emfast.synthesis.summary import Summary
from engines.files import atomic_write

CONTACT_IMAGES = 12
CONTACT_COLUMNS = 6
PUBLISHED = (METADATA, CONTACT, CARD, MANIFEST)


def publish(folder: Path, record: dict[str, Any], lines: Iterable[bytes], writer: str = "") -> None:
    """Write all of a whole set but its images and ``job.json``.

    Every file is a function of the record and the lines. The manifest, by which a set is known to
    be whole, appears last.

    Args:
        folder: of the set, which holds the images.
        record: what ``job.json`` says.
        lines: of the manifest, in the order of the images' numbers.
        writer: a word for temporary names, as for :func:`engines.files.atomic_write`.

    Raises:
        UserError: the disk is full, or an image cannot be read.
    """
    summary = Summary()
    digest = hashlib.sha256()
    with ExitStack() as stack:
        # Files are renamed in the opposite order.
        manifest, metadata = (
            stack.enter_context(stack.enter_context(atomic_write(folder / name, writer)).open("wb"))
            for name in (MANIFEST, METADATA)
        )
        for text in lines:
            entry = json.loads(text)
            summary.add(entry, CONTACT_IMAGES)
            digest.update(text)
            manifest.write(text)
            metadata.write(line(metadata_line(entry)))
        _write_contact(folder, summary.first, writer)
        with atomic_write(folder / CARD, writer) as temporary:
            temporary.write_text(card(record, summary, digest.hexdigest()), encoding="utf-8")


def _write_contact(folder: Path, indices: Sequence[int], writer: str) -> None:
    images, masks = (
        np.stack([read_image(folder / file_name(kind, index)) for index in indices])
        for kind in ("images", "masks")
    )
    with atomic_write(folder / CONTACT, writer) as temporary:
        contact_sheet(images, masks, CONTACT_COLUMNS).save(temporary)
