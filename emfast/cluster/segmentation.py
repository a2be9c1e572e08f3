"""Segmenting a volume on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from emfast.cluster.connection import connected
from emfast.cluster.messages import Messenger
from emfast.cluster.places import bundle_path, source_path
from emfast.cluster.shards import run_on_worker, run_shards
from emfast.cluster.workers import choose_slot
from emfast.segmentation.job import segment_volume
from emfast.segmentation.places import MASKS, check_out
from emfast.segmentation.preprocessing import Scope
from emfast.segmentation.record import Record
from emfast.segmentation.result import Segmented
from emfast.segmentation.segmenter import Segmenter
from emfast.segmentation.settings import Settings
from emfast.synthesis.shard import Shard
from emfast.volumes import VolumeReader, open_volume
from engines.errors import UserError

Tell = Callable[[str], object]


@dataclass(frozen=True)
class Opening:
    """How a worker opens its segmenter: arguments of :meth:`Segmenter.open`."""

    model: str
    engine: str
    precision: str
    threads: int | None
    threshold: float | None
    tile: int
    size: tuple[int, int] | None
    overlap: int | None
    flips: int
    scope: Scope | None


@dataclass(frozen=True)
class Source:
    """How a worker opens the volume: arguments of :func:`~emfast.volumes.open_volume`."""

    path: str
    axes: str | None = None
    dataset: str | None = None

    def open(self) -> VolumeReader:
        return open_volume(self.path, axes=self.axes, dataset=self.dataset)


def segment_on_cluster(
    address: str,
    source: Source,
    out: Path,
    opening: Opening,
    settings: Settings,
    tell: Tell = lambda line: None,
) -> Segmented:
    """As :func:`~emfast.segmentation.job.segment_volume` on this machine, with the same files.

    Args:
        address: of the cluster, as for :func:`~emfast.cluster.connection.connected`.
        source: a Zarr or a folder of images, which all machines share.
        out: the folder for the masks, which all machines share.
        opening: of the segmenter; ``threads`` are those of a worker.
        settings: what to make of the volume.
        tell: gets lines for the user.

    Raises:
        UserError: a format that is written in one piece, no such cluster, a folder that it does
            not share, or as :func:`segment_volume`.
    """
    source, asked = replace(source, path=source_path(source.path)), out
    opening, out = replace(opening, model=bundle_path(opening.model)), out.absolute()
    with source.open() as reader:
        _check(reader, out)
        slices = reader.info.slices
    with connected(address) as cluster:
        tell(f"ray: {cluster}")
        slot = choose_slot(
            cluster,
            opening.engine,
            opening.threads,
            lambda s: run_on_worker(s, _engine_name, opening),
        )
        opening = replace(opening, threads=slot.threads)
        shards = slot.shards(slices)
        tell(f"ray: {slot}, {shards} shards")
        there = sum(index < slices for index in Record(out, Shard()).listed())
        work = partial(_segment_shard, source, opening, settings, out)
        outcome = run_shards(cluster, slot, work, out, shards, "slices", slices, there, tell)
        if settings.instances is not None:
            tell("numbering objects")
        # One run by itself finds all slices there, merges and numbers objects, and removes what
        # lost workers were writing.
        whole = run_on_worker(slot, _finish, source, opening, settings, out)
    found = min(there, sum(result.found for result in outcome.results))
    return _below(replace(whole, found=found), out, asked)


def _check(reader: VolumeReader, out: Path) -> None:
    check_out(out, reader)
    info = reader.info
    masks = reader.writer(info, out / MASKS, np.dtype(np.uint8), 0, True)
    if not masks.resumable:
        raise UserError(
            f"{info.path}: {info.format} is written in one piece; --ray can share a Zarr or a "
            "folder of images"
        )


def _below(result: Segmented, out: Path, asked: Path) -> Segmented:
    """The result with paths as the user gave them."""
    paths = {
        name: asked / path.relative_to(out)
        for name in ("masks", "probability", "labels", "overlays")
        if (path := getattr(result, name)) is not None
    }
    return replace(result, **paths)


def _segment_shard(
    source: Source,
    opening: Opening,
    settings: Settings,
    out: Path,
    shard: Shard,
    messenger: Messenger,
) -> Segmented:
    """Segment a shard, on a worker."""
    segmenter = _segmenter(opening)
    for line in segmenter.passed_over:
        messenger.tell(f"{messenger.host}: {line}")
    messenger.tell(f"engine at {messenger.host}: {segmenter.info}")
    return segment_volume(
        _reader(source),
        out,
        segmenter,
        settings,
        shard,
        messenger.tell,
        report=messenger.count,
        merge=False,
    )


def _finish(source: Source, opening: Opening, settings: Settings, out: Path) -> Segmented:
    return segment_volume(
        _reader(source), out, _segmenter(opening), settings, report=lambda slices: None
    )


def _engine_name(opening: Opening) -> str:
    return _segmenter(opening).info.engine


@lru_cache(maxsize=1)
def _segmenter(opening: Opening) -> Segmenter:
    """The segmenter of this worker, which runs one shard after another with it."""
    return Segmenter.open(
        opening.model,
        opening.engine,
        opening.precision,
        opening.threads,
        opening.threshold,
        opening.tile,
        opening.size,
        opening.overlap,
        opening.flips,
        opening.scope,
    )


@lru_cache(maxsize=1)
def _reader(source: Source) -> VolumeReader:
    """The volume, opened once on a worker: a folder of many images takes a while."""
    return source.open()
