"""What is written of each slice: mask, probability, overlay, and its line in the list."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from emfast.pictures import overlay as draw_overlay
from emfast.segmentation.overlays import shown
from emfast.segmentation.places import MASKS, OVERLAYS, PROBABILITY
from emfast.segmentation.predicted import Predicted
from emfast.segmentation.preprocessing import SegmenterSpec, Uint8, label_map
from emfast.segmentation.record import Record, file_stamp
from emfast.segmentation.settings import Settings
from emfast.volumes import VolumeReader, VolumeWriter, create_like
from emfast.volumes.images import ImagesReader
from engines.errors import UserError
from engines.files import atomic_write, remove_leftovers


class Outputs:
    """The files of one run, opened but not yet entered.

    Args:
        reader: of the volume.
        out: the folder to write to; made if missing.
        spec: of the segmenter.
        settings: what to write.
        log: takes the line of each slice.
        resume: whether what an earlier run or another shard left counts.
        alone: whether no other shard writes to the folder, whose files must stay.

    Attributes:
        writers: by the names of :mod:`~emfast.segmentation.places`.
        count: slices written so far.

    Raises:
        UserError: the folder cannot be written, or the format cannot hold the values.
    """

    def __init__(
        self,
        reader: VolumeReader,
        out: Path,
        spec: SegmenterSpec,
        settings: Settings,
        log: Record,
        *,
        resume: bool,
        alone: bool,
    ) -> None:
        self._reader, self._out, self._spec = reader, out, spec
        self._settings, self._log = settings, log
        self.count = 0
        kinds = {MASKS: (np.dtype(np.uint8), 0)}
        if settings.probability is not None:
            channels = spec.classes if spec.classes > 1 else 0
            kinds[PROBABILITY] = np.dtype(settings.probability), channels
        self.writers: dict[str, VolumeWriter] = {
            name: create_like(
                reader.info, reader, out, name=name, dtype=dtype, classes=classes, resume=resume
            )
            for name, (dtype, classes) in kinds.items()
        }
        try:
            if settings.overlay:
                (out / OVERLAYS).mkdir(parents=True, exist_ok=True)
            if alone:
                for place in (out, *(out / name for name in (*kinds, OVERLAYS))):
                    remove_leftovers(place)
        except OSError as error:
            raise UserError(f"{out}: cannot be written ({error.strerror or error})") from None

    @property
    def resumable(self) -> bool:
        """Whether slices can be written in any order and in several runs."""
        return self.writers[MASKS].resumable

    def there(self) -> bool:
        """Whether every volume is whole."""
        if isinstance(self._reader, ImagesReader):
            slices = self._reader.info.slices
            return all(writer.written(0, slices) for writer in self.writers.values())
        return all(writer.path.exists() for writer in self.writers.values())

    def stored(self, indices: Iterable[int]) -> list[int]:
        """Those slices whose chunk is stored."""
        return [i for i in indices if all(w.written(i, i + 1) for w in self.writers.values())]

    def done(self, start: int, stop: int, listed: dict[int, dict[str, Any]]) -> bool:
        """Whether an earlier run wrote these slices, from the images that are there now."""
        return (
            all(i in listed and listed[i]["stamp"] == self._stamp(i) for i in range(start, stop))
            and all(writer.written(start, stop) for writer in self.writers.values())
            and (
                not self._settings.overlay
                or all(self._overlay_path(i).exists() for i in range(start, stop))
            )
        )

    def take(self, item: Predicted) -> None:
        """Write one slice."""
        settings, spec, reader = self._settings, self._spec, self._reader
        labels = label_map(item.probability[None], spec.threshold)[0]
        invalid = item.prepared.invalid
        if invalid is not None:
            labels[invalid] = 0
        values = mask_values(labels, spec.classes, settings.ones)
        self.writers[MASKS].write(item.index, values[None])
        if settings.probability is not None:
            self.writers[PROBABILITY].write(item.index, self._probability(item.probability)[None])
        if settings.overlay:
            with atomic_write(self._overlay_path(item.index)) as temporary:
                picture = draw_overlay(shown(item.image), labels)
                Image.fromarray(picture).save(temporary, format="PNG")
        self._log.append(
            {
                "index": item.index,
                "name": reader.names[item.index],
                "stamp": self._stamp(item.index),
                "pixels": labels.size,
                "classes": np.bincount(labels.ravel(), minlength=spec.classes + 1)[1:].tolist(),
                "invalid": 0 if invalid is None else int(np.count_nonzero(invalid)),
                "clipped": item.prepared.clipped,
                "blank": labels.size if item.prepared.blank else 0,
            }
        )
        self.count += 1

    def _probability(self, probability: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        if self._settings.probability == "uint8":
            probability = np.rint(probability * np.float32(255)).astype(np.uint8)
        return probability if self._spec.classes > 1 else probability[0]

    def _overlay_path(self, index: int) -> Path:
        return self._out / OVERLAYS / f"{self._reader.names[index]}.png"

    def _stamp(self, index: int) -> list[int] | None:
        """Size and time of the file that a slice comes from, where each has its own."""
        if not isinstance(self._reader, ImagesReader):
            return None
        return file_stamp(self._reader.files[index])


def mask_values(labels: Uint8, classes: int, ones: bool = False) -> Uint8:
    """Labels as mask files hold them: 0 and 255 (or 1) for one class, else unchanged."""
    return labels if classes > 1 or ones else labels * np.uint8(255)
