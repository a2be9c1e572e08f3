"""Segmenting a volume into files of masks of the same layout and names."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from emfast.progress import Advance, progress
from emfast.segmentation.decisions import Decisions, decide
from emfast.segmentation.description import describe
from emfast.segmentation.greys import Statistics, measure_volume
from emfast.segmentation.labels import check_instances, write_labels
from emfast.segmentation.outputs import Outputs
from emfast.segmentation.places import MASKS, OVERLAYS, PROBABILITY, check_masks, check_out
from emfast.segmentation.predicted import Predicted
from emfast.segmentation.record import Record
from emfast.segmentation.resampling import grown
from emfast.segmentation.result import Segmented, coverage, notes, totals
from emfast.segmentation.segmenter import Segmenter
from emfast.segmentation.settings import Settings
from emfast.segmentation.streaming import READ_BYTES, Plan, run
from emfast.synthesis.shard import Shard
from emfast.volumes import VolumeReader, open_volume
from engines.errors import UserError

Tell = Callable[[str], object]


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
    report: Callable[[int], None] | None = None,
    merge: bool = True,
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
        report: called, from another thread, with the number of slices that are newly written; there
            is no progress bar then.
        merge: finish the volume, with its instances, where no slice is lacking.

    Raises:
        UserError: unreadable input, an ``out`` that belongs to the input, to another run or holds
            masks that this function did not write, or a folder that cannot be written.
    """
    settings, shard = settings or Settings(), shard or Shard()
    return _Run(reader, out, segmenter, settings, shard, tell, report, merge).run()


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
        report: Callable[[int], None] | None,
        merge: bool,
    ) -> None:
        self.reader, self.out, self.segmenter = reader, out, segmenter
        self.settings, self.shard, self.tell = settings, shard, tell
        self.report, self.merge = report, merge
        self.info, self.spec = reader.info, segmenter.spec
        self.log = Record(out, shard)

    def run(self) -> Segmented:
        settings, alone = self.settings, self.shard.count == 1
        check_out(self.out, self.reader)
        if settings.instances is not None:
            check_instances(self.info, self.spec, settings.instances, settings.min_size)
        if settings.median > 1 and self.info.size is None:
            raise UserError(f"{self.info.path}: slices differ in size; they have no median")
        decisions = decide(
            self.info, self.spec, settings.invert, settings.limits, settings.pixel_size
        )
        record = describe(self.reader, self.segmenter, settings, decisions)
        then = self.log.found(record)
        if then is None:
            check_masks(self.out)
        for line in decisions.lines:
            self.tell(line)
        # Another shard may have begun since: what it wrote must stay.
        afresh = then is None and alone
        outputs = Outputs(
            self.reader, self.out, self.spec, settings, self.log, resume=not afresh, alone=alone
        )
        if not alone and not outputs.resumable:
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
        elif not outputs.resumable and not (then.get("complete") and outputs.there()):
            self.log.forget()
        statistics = record["statistics"]
        greys = decisions.greys
        if statistics is not None:
            greys = replace(greys, statistics=Statistics(**statistics))
        found = self._write(outputs, replace(decisions, greys=greys))
        return self._finish(outputs, record, then, found)

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

    def _write(self, outputs: Outputs, decisions: Decisions) -> int:
        """Write what is missing of this shard; returns the number of slices that were there."""
        slices = self.info.slices
        listed = self.log.listed()
        if not outputs.resumable and len(listed) == slices:
            return slices
        with ExitStack() as stack:
            for writer in outputs.writers.values():
                stack.enter_context(writer)
            plan, owned = self._plan(outputs, decisions, listed)
            todo = sum(stop - start for start, stop in plan.blocks)
            with self._progress(owned, owned - todo) as advance:
                run(self.reader, self.segmenter, plan, _timed(outputs.take, advance))
            return owned - todo if outputs.resumable else 0

    @contextmanager
    def _progress(self, total: int, done: int) -> Iterator[Advance]:
        report = self.report
        if report is None:
            with progress("slices", total, done) as advance:
                yield advance
        else:
            yield lambda steps=1, note="": report(steps)

    def _plan(
        self, outputs: Outputs, decisions: Decisions, listed: dict[int, dict[str, Any]]
    ) -> tuple[Plan, int]:
        """What is to be written, and how many slices are this shard's."""
        info, slices = self.info, self.info.slices
        chunk = math.lcm(*(writer.chunk for writer in outputs.writers.values()))
        batch, read = 1, 1
        if info.size is not None:
            size = info.size if decisions.by is None else grown(info.size, decisions.by)
            batch = _aligned(self.segmenter.batch_size(size), chunk)
            most = max(1, READ_BYTES // (math.prod(info.size) * info.dtype.itemsize))
            read = max(batch, _aligned(min(most, max(info.chunk, 1)), batch))
        block = math.lcm(chunk, batch)
        mine = self.shard.owned(slices, block)
        blocks = [(i, min(i + block, slices)) for i in range(0, slices, block) if mine[i]]
        if outputs.resumable:
            blocks = [b for b in blocks if not outputs.done(*b, listed)]
        plan = Plan(blocks, batch, read, decisions.greys, decisions.by, self.settings.median)
        return plan, int(mine.sum())

    def _finish(
        self, outputs: Outputs, record: dict[str, Any], then: dict[str, Any] | None, found: int
    ) -> Segmented:
        slices, settings = self.info.slices, self.settings
        lines = {i: line for i, line in self.log.listed().items() if i < slices}
        lacking = slices - len(lines)
        if not lacking and not outputs.there():
            # Other shards list a slice a little before its chunk is stored.
            lacking = max(1, slices - len(outputs.stored(lines)))
        shares = coverage(lines.values(), self.spec.labels)
        objects, labels = None, None
        paths = {name: writer.path for name, writer in outputs.writers.items()}
        if not lacking and self.merge:
            if settings.instances is not None:
                labels, objects = write_labels(
                    self.reader,
                    paths[MASKS],
                    self.out,
                    settings.instances,
                    settings.min_size,
                    settings.fill_holes,
                    known=then.get("objects") if then and not outputs.count else None,
                )
            done = {"coverage": shares, **totals(lines.values()), "complete": True}
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
            shares,
            notes(lines.values()),
        )


def _timed(take: Callable[[Predicted], None], advance: Advance) -> Callable[[Predicted], None]:
    """The same, which also moves the bar and tells the speed."""
    start, voxels = time.monotonic(), 0

    def taking(item: Predicted) -> None:
        nonlocal voxels
        take(item)
        voxels += item.image.size
        speed = voxels / max(time.monotonic() - start, 1e-9) / 1e6
        advance(1, f"{speed:.3g} million voxels/s")

    return taking


def _aligned(wanted: int, chunk: int) -> int:
    """The largest number up to ``wanted`` that divides ``chunk`` or is a multiple of it."""
    if wanted >= chunk:
        return wanted // chunk * chunk
    return max(d for d in range(1, wanted + 1) if chunk % d == 0)
