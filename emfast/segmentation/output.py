"""Segmenting a volume into files of masks of the same layout and names."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from emfast.pictures import overlay as draw_overlay
from emfast.progress import Advance, progress
from emfast.segmentation.decisions import Decisions, decide
from emfast.segmentation.greys import Statistics, measure_volume
from emfast.segmentation.instances import Method
from emfast.segmentation.labels import check_instances, write_labels
from emfast.segmentation.neighbours import check_median
from emfast.segmentation.preprocessing import Uint8, label_map
from emfast.segmentation.record import RECORD, Record
from emfast.segmentation.resampling import grown
from emfast.segmentation.segmenter import Segmenter
from emfast.segmentation.streaming import READ_BYTES, Plan, Predicted, run
from emfast.synthesis.shard import Shard
from emfast.volumes import VolumeReader, VolumeWriter, create_like, open_volume
from emfast.volumes.images import ImagesReader
from engines.errors import UserError
from engines.files import atomic_write, remove_leftovers

MASKS = "masks"
PROBABILITY = "probability"
LABELS = "labels"
OVERLAYS = "overlays"
# Shares of the greys of a slice that an overlay shows as black and as white, in percent.
SHOWN = (0.5, 99.5)

ProbabilityType = Literal["float32", "uint8"]
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Settings:
    """What to make of a volume.

    Attributes:
        invert: turn black into white before the network sees it.
        limits: darkest and brightest grey; what is beyond is clipped.
        pixel_size: edge of a pixel in nm, instead of what the file says.
        median: neighbouring slices whose median probability counts, odd; 1 for none.
        ones: masks of one class hold 1 instead of 255.
        probability: also write probabilities, as float32 in [0, 1] or as uint8, where 255 is 1.
        overlay: also draw every slice with its mask outlined.
        instances: also number the objects, by this method.
        min_size: objects of fewer voxels are not numbered.
        fill_holes: whether holes of objects count as object.
    """

    invert: bool = False
    limits: tuple[float, float] | None = None
    pixel_size: float | None = None
    median: int = 1
    ones: bool = False
    probability: ProbabilityType | None = None
    overlay: bool = False
    instances: Method | None = None
    min_size: int = 0
    fill_holes: bool = False

    def __post_init__(self) -> None:
        check_median(self.median)
        if self.instances is None and (self.min_size or self.fill_holes):
            raise UserError(
                "a least size and filled holes are those of numbered objects, which were not "
                "asked for; say how with --instances"
            )


@dataclass(frozen=True)
class Segmented:
    """What a run wrote.

    Attributes:
        slices: of the volume.
        found: slices of this shard that an earlier run had left.
        lacking: slices that other shards have still to write.
        masks: the folder of masks, or the file or Zarr where the volume is one.
        probability, labels: likewise, or None.
        overlays: the folder of overlays, or None.
        objects: number of instances, where they were asked for and nothing is lacking.
        coverage: share of all pixels so far, in [0, 1], that each class has.
        notes: what was found in the greys, in words.
    """

    slices: int
    found: int
    lacking: int
    masks: Path
    probability: Path | None
    labels: Path | None
    overlays: Path | None
    objects: int | None
    coverage: dict[str, float]
    notes: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The same in words."""
        done = self.slices - self.lacking
        noun = "slice" if done == 1 else "slices"
        there = f", {self.found} of them earlier" if self.found else ""
        yield f"{done} {noun} segmented{there}, masks in {self.masks}"
        if self.lacking:
            yield f"{self.lacking} of {self.slices} slices are left to other shards"
        if self.probability is not None:
            yield f"probabilities in {self.probability}"
        if self.labels is not None:
            yield f"{self.objects} objects, labels in {self.labels}"
        if self.overlays is not None:
            yield f"overlays in {self.overlays}"
        yield from self.notes
        for label, share in self.coverage.items():
            yield f"{label}: {share:.2%} of all pixels"


def segment_files(
    source: Path | str,
    out: Path,
    segmenter: Segmenter,
    settings: Settings | None = None,
    shard: Shard | None = None,
    tell: Tell = lambda line: None,
) -> Segmented:
    """As :func:`segment_volume`, for what :func:`~emfast.volumes.open_volume` opens."""
    with open_volume(source) as reader:
        return segment_volume(reader, out, segmenter, settings, shard, tell)


def segment_volume(
    reader: VolumeReader,
    out: Path,
    segmenter: Segmenter,
    settings: Settings | None = None,
    shard: Shard | None = None,
    tell: Tell = lambda line: None,
) -> Segmented:
    """Segment a volume slice by slice, with bounded memory.

    Written into ``out``, in the format, layout and voxel size of the volume and under its name:

    - ``masks/``: 0 and 255 (or 1) for a segmenter of one class, else 0 and the labels from 1.
    - ``probability/``, ``labels/``: on request; of several classes, one channel each.
    - ``overlays/``: on request, an RGB PNG a slice with the masks outlined.
    - ``segment.json`` and ``slices.jsonl``: what was done, and what was found in each slice. The
      first is there from the start, with ``complete`` false until everything is written.

    A run that was killed goes on where it was, if the format allows it (Zarr, image files), and
    ends with the same bytes; other formats begin anew. Files appear whole or not at all.

    Args:
        reader: of the volume.
        out: the folder to write to; made if missing.
        segmenter: an open one.
        settings: what to make of it.
        shard: the part that this run writes; all of it by default.
        tell: gets one line for each decision.

    Raises:
        UserError: unreadable input, an ``out`` that belongs to the input, to another run or holds
            masks that this function did not write, or a folder that cannot be written.
    """
    settings, shard = settings or Settings(), shard or Shard()
    return _Run(reader, out, segmenter, settings, shard, tell).run()


def mask_values(labels: Uint8, classes: int, ones: bool = False) -> Uint8:
    """Labels as mask files hold them: 0 and 255 (or 1) for one class, else unchanged."""
    return labels if classes > 1 or ones else labels * np.uint8(255)


class _Run:
    """One call of :func:`segment_volume`."""

    def __init__(
        self,
        reader: VolumeReader,
        out: Path,
        segmenter: Segmenter,
        settings: Settings,
        shard: Shard,
        tell: Tell,
    ) -> None:
        self.reader, self.out, self.segmenter = reader, out, segmenter
        self.settings, self.shard, self.tell = settings, shard, tell
        self.info, self.spec = reader.info, segmenter.spec
        self.log = Record(out, shard)
        self.writers: dict[str, VolumeWriter] = {}
        self.written = 0

    def run(self) -> Segmented:
        settings = self.settings
        _check_out(self.out, self.reader)
        if settings.instances is not None:
            check_instances(self.info, self.spec, settings.instances, settings.min_size)
        if settings.median > 1 and self.info.size is None:
            raise UserError(f"{self.info.path}: slices differ in size; they have no median")
        decisions = decide(
            self.info, self.spec, settings.invert, settings.limits, settings.pixel_size
        )
        record = self._describe(decisions)
        then = self.log.found(record)
        if then is None:
            _check_masks(self.out)
        for line in decisions.lines:
            self.tell(line)
        # Another shard may have begun since: what it wrote must stay.
        afresh = then is None and self.shard.count == 1
        self._make_writers(resume=not afresh)
        resumable = self.writers[MASKS].resumable
        if self.shard.count > 1 and not resumable:
            raise UserError(
                f"{self.info.path}: {self.info.format} is written in one piece; shards can share "
                "a Zarr or a folder of images"
            )
        record["statistics"] = None if then is None else then.get("statistics")
        record["statistics"] = record["statistics"] or self._statistics(decisions)
        if afresh:
            self.log.forget()
        if then is None:
            self.log.claim(record)
        elif not resumable and not (then.get("complete") and self._there()):
            self.log.forget()
        statistics = record["statistics"]
        greys = decisions.greys
        if statistics is not None:
            greys = replace(greys, statistics=Statistics(**statistics))
        found = self._write(replace(decisions, greys=greys))
        return self._finish(record, then, found)

    def _describe(self, decisions: Decisions) -> dict[str, Any]:
        info, spec, segmenter, settings = self.info, self.spec, self.segmenter, self.settings
        values = range(1, spec.classes + 1) if spec.classes > 1 or settings.ones else [255]
        return {
            "input": os.path.abspath(info.path),
            "stamp": None if info.format == "images" else _stamp(self.reader.path),
            "slices": info.slices,
            "size": None if info.size is None else list(info.size),
            "dtype": str(info.dtype),
            "axes": info.axes,
            "bundle": {"name": segmenter.bundle.manifest.name, "sha256": segmenter.bundle.sha256},
            "engine": segmenter.info.to_dict(),
            "passed_over": list(segmenter.passed_over),
            "threshold": spec.threshold,
            "normalize": spec.scope if spec.normalization == "standardize" else spec.normalization,
            "invert": settings.invert,
            "range": None if settings.limits is None else list(settings.limits),
            "pixel_size": None if decisions.pixel_size is None else list(decisions.pixel_size),
            "resampled": None if decisions.by is None else list(decisions.by),
            "tile": segmenter.tile,
            "overlap": segmenter.overlap,
            "flips": segmenter.flips,
            "median": settings.median,
            "values": dict(zip(spec.labels, values, strict=True)),
            "probability": settings.probability,
            "overlay": settings.overlay,
            "instances": None
            if settings.instances is None
            else {
                "method": settings.instances,
                "min_size": settings.min_size,
                "fill_holes": settings.fill_holes,
            },
            "decisions": list(decisions.lines),
            "complete": False,
        }

    def _make_writers(self, resume: bool) -> None:
        kinds = {MASKS: (np.dtype(np.uint8), 0)}
        if self.settings.probability is not None:
            channels = self.spec.classes if self.spec.classes > 1 else 0
            kinds[PROBABILITY] = np.dtype(self.settings.probability), channels
        for name, (dtype, classes) in kinds.items():
            self.writers[name] = create_like(
                self.info,
                self.reader,
                self.out,
                name=name,
                dtype=dtype,
                classes=classes,
                resume=resume,
            )
        try:
            if self.settings.overlay:
                (self.out / OVERLAYS).mkdir(parents=True, exist_ok=True)
            if self.shard.count == 1:
                for place in (self.out, *(self.out / name for name in (*kinds, OVERLAYS))):
                    remove_leftovers(place)
        except OSError as error:
            raise UserError(f"{self.out}: cannot be written ({error.strerror or error})") from None

    def _there(self) -> bool:
        return all(writer.path.exists() for writer in self.writers.values())

    def _statistics(self, decisions: Decisions) -> dict[str, float] | None:
        """Mean and deviation of the volume, where the network asks for them."""
        if self.spec.scope != "volume" or self.spec.normalization != "standardize":
            return None
        with progress("statistics", self.info.slices) as advance:
            return asdict(
                measure_volume(
                    lambda index: self.reader.read(index, index + 1)[0],
                    self.info.slices,
                    decisions.greys.limits,
                    advance,
                )
            )

    def _write(self, decisions: Decisions) -> int:
        """Write what is missing of this shard; returns the number of slices that were there."""
        slices = self.info.slices
        listed = self.log.listed()
        if not self.writers[MASKS].resumable and len(listed) == slices:
            return slices
        with ExitStack() as stack:
            for writer in self.writers.values():
                stack.enter_context(writer)
            plan = self._plan(decisions, listed)
            owned = self._owned(plan)
            todo = sum(stop - start for start, stop in plan.blocks)
            with progress("slices", owned, owned - todo) as advance:
                run(self.reader, self.segmenter, plan, _Taker(self, advance).take)
            if self.writers[MASKS].resumable:
                return owned - todo
        return 0

    def _plan(self, decisions: Decisions, listed: dict[int, dict[str, Any]]) -> Plan:
        info, slices = self.info, self.info.slices
        chunk = math.lcm(*(writer.chunk for writer in self.writers.values()))
        batch, read = 1, 1
        if info.size is not None:
            size = info.size if decisions.by is None else grown(info.size, decisions.by)
            batch = _aligned(self.segmenter.batch_size(size), chunk)
            most = max(1, READ_BYTES // (math.prod(info.size) * info.dtype.itemsize))
            read = max(batch, _aligned(min(most, max(info.chunk, 1)), batch))
        self._block = math.lcm(chunk, batch)
        starts = range(0, slices, self._block)
        mine = self.shard.owned(slices, self._block)
        blocks = [(start, min(start + self._block, slices)) for start in starts if mine[start]]
        if self.writers[MASKS].resumable:
            blocks = [block for block in blocks if not self._done(*block, listed)]
        return Plan(blocks, batch, read, decisions.greys, decisions.by, self.settings.median)

    def _owned(self, plan: Plan) -> int:
        return int(self.shard.owned(self.info.slices, self._block).sum())

    def _done(self, start: int, stop: int, listed: dict[int, dict[str, Any]]) -> bool:
        """Whether an earlier run wrote these slices, from the images that are there now."""
        return (
            all(i in listed and listed[i]["stamp"] == self.stamp(i) for i in range(start, stop))
            and all(writer.written(start, stop) for writer in self.writers.values())
            and (
                not self.settings.overlay
                or all(self.overlay_path(i).exists() for i in range(start, stop))
            )
        )

    def stamp(self, index: int) -> list[int] | None:
        """Size and time of the file that a slice comes from, where each has its own."""
        if not isinstance(self.reader, ImagesReader):
            return None
        return _stamp(self.reader.files[index])

    def overlay_path(self, index: int) -> Path:
        return self.out / OVERLAYS / f"{self.reader.names[index]}.png"

    def _finish(self, record: dict[str, Any], then: dict[str, Any] | None, found: int) -> Segmented:
        slices, settings = self.info.slices, self.settings
        lines = {i: line for i, line in self.log.listed().items() if i < slices}
        lacking = slices - len(lines)
        if not lacking and not self._there():
            # Other shards list a slice a little before its chunk is stored.
            lacking = max(1, slices - len(self._stored(lines)))
        coverage = _coverage(lines, self.spec.labels)
        objects, labels = None, None
        paths = {name: writer.path for name, writer in self.writers.items()}
        if not lacking:
            if settings.instances is not None:
                labels, objects = write_labels(
                    self.reader,
                    paths[MASKS],
                    self.out,
                    settings.instances,
                    settings.min_size,
                    settings.fill_holes,
                    known=then.get("objects") if then and not self.written else None,
                )
            totals = {key: sum(line[key] for line in lines.values()) for key in COUNTED}
            done = {"coverage": coverage, **totals, "complete": True}
            if objects is not None:
                done["objects"] = objects
            self.log.finish(lines, {**record, **done})
        return Segmented(
            slices,
            found,
            lacking,
            paths[MASKS],
            paths.get(PROBABILITY),
            labels,
            self.out / OVERLAYS if settings.overlay else None,
            objects,
            coverage,
            _notes(lines),
        )

    def _stored(self, lines: dict[int, dict[str, Any]]) -> list[int]:
        """Listed slices whose chunk is stored."""
        return [i for i in lines if all(w.written(i, i + 1) for w in self.writers.values())]


COUNTED = ("invalid", "clipped")


class _Taker:
    """What becomes of each slice behind the network; runs in the writer's thread."""

    def __init__(self, run: _Run, advance: Advance) -> None:
        self._run, self._advance = run, advance
        self._start, self._voxels = time.monotonic(), 0

    def take(self, item: Predicted) -> None:
        this, settings, spec = self._run, self._run.settings, self._run.spec
        labels = label_map(item.probability[None], spec.threshold)[0]
        invalid = item.prepared.invalid
        if invalid is not None:
            labels[invalid] = 0
        values = mask_values(labels, spec.classes, settings.ones)
        this.writers[MASKS].write(item.index, values[None])
        if settings.probability is not None:
            this.writers[PROBABILITY].write(item.index, self._probability(item.probability)[None])
        if settings.overlay:
            with atomic_write(this.overlay_path(item.index)) as temporary:
                picture = draw_overlay(shown(item.image), labels)
                Image.fromarray(picture).save(temporary, format="PNG")
        this.log.append(
            {
                "index": item.index,
                "name": this.reader.names[item.index],
                "stamp": this.stamp(item.index),
                "pixels": labels.size,
                "classes": np.bincount(labels.ravel(), minlength=spec.classes + 1)[1:].tolist(),
                "invalid": 0 if invalid is None else int(np.count_nonzero(invalid)),
                "clipped": item.prepared.clipped,
            }
        )
        this.written += 1
        self._voxels += labels.size
        speed = self._voxels / max(time.monotonic() - self._start, 1e-9) / 1e6
        self._advance(1, f"{speed:.3g} million voxels/s")

    def _probability(self, probability: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        if self._run.settings.probability == "uint8":
            probability = np.rint(probability * np.float32(255)).astype(np.uint8)
        return probability if self._run.spec.classes > 1 else probability[0]


def shown(image: npt.NDArray[Any]) -> Uint8:
    """A slice as 8-bit greys for the eye; bytes stay as they are.

    Args:
        image: integers or floats (height, width).
    """
    if image.dtype == np.uint8:
        result: Uint8 = image
        return result
    x = image.astype(np.float64)
    finite = np.isfinite(x)
    low, high = np.percentile(x[finite], SHOWN) if finite.any() else (0.0, 1.0)
    x = (np.where(finite, x, low) - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def _aligned(wanted: int, chunk: int) -> int:
    """The largest number up to ``wanted`` that divides ``chunk`` or is a multiple of it."""
    if wanted >= chunk:
        return wanted // chunk * chunk
    return max(d for d in range(1, wanted + 1) if chunk % d == 0)


def _stamp(path: Path) -> list[int]:
    """Size in bytes and time of the last change in ns."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _coverage(lines: dict[int, dict[str, Any]], names: tuple[str, ...]) -> dict[str, float]:
    pixels = sum(line["pixels"] for line in lines.values())
    counts = np.sum([line["classes"] for line in lines.values()], axis=0) if lines else [0]
    return {name: int(count) / max(pixels, 1) for name, count in zip(names, counts, strict=False)}


def _notes(lines: dict[int, dict[str, Any]]) -> tuple[str, ...]:
    notes = []
    for key, text in (
        ("invalid", "NaN or infinite: left out of the statistics, mask 0 there"),
        ("clipped", "far outside the others: clipped"),
    ):
        found = [line[key] for line in lines.values() if line[key]]
        if found:
            noun = "slice" if len(found) == 1 else "slices"
            notes.append(f"{sum(found)} pixels in {len(found)} {noun} {text}")
    return tuple(notes)


def _check_out(out: Path, reader: VolumeReader) -> None:
    """Refuse to write over the input."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder to write the masks to")
    path = reader.path.resolve()
    read = path if path.is_dir() else path.parent
    written = {(out / name).resolve() for name in (MASKS, PROBABILITY, LABELS, OVERLAYS)}
    if out.resolve() == path or read in written:
        raise UserError(f"{out}: is the input itself; give another folder to write the masks to")


def _check_masks(out: Path) -> None:
    """Refuse to write over masks that no segmentation wrote."""
    for name in (MASKS, PROBABILITY, LABELS):
        folder = out / name
        # The description is there before the first mask, also that of a shard just begun.
        if folder.is_dir() and any(folder.iterdir()) and not (out / RECORD).exists():
            raise UserError(
                f"{folder}: holds files that emfast segment did not write (no {RECORD} beside "
                "it), perhaps labels; give another folder"
            )
