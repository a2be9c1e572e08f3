"""Drawing a set on a Ray cluster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

from emfast.cluster.connection import Cluster, connected
from emfast.cluster.messages import Messenger
from emfast.cluster.places import bundle_path
from emfast.cluster.shards import run_on_worker, run_shards
from emfast.cluster.workers import Slot, choose_slot
from emfast.synthesis.batch import MOST, fastest_batch
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Generated, Job, run_job
from emfast.synthesis.manifest import MANIFEST, lines_in
from emfast.synthesis.shard import Shard
from engines.errors import UserError

Tell = Callable[[str], object]


@dataclass(frozen=True)
class Opening:
    """How a worker opens its denoiser: arguments of :meth:`Generator.open`."""

    model: str
    engine: str
    precision: str
    threads: int | None
    batch: int
    size: tuple[int, int]


def draw_on_cluster(
    address: str,
    job: Job,
    out: Path,
    model: str,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    verify: bool = False,
    auto_batch: bool = False,
    tell: Tell = lambda line: None,
) -> Generated:
    """As :func:`~emfast.synthesis.job.run_job` on this machine, with the same bytes.

    Args:
        address: of the cluster, as for :func:`~emfast.cluster.connection.connected`.
        job: what to draw.
        out: the folder of the set, which all machines share.
        model: name of a shipped bundle, or a folder that all machines share.
        engine, precision: as for :meth:`Generator.open`; all workers must come to the same.
        threads: CPU threads of a worker.
        verify: compare the SHA-256 of images that are there already.
        auto_batch: let a worker find the fastest batch, instead of the job's.
        tell: gets lines for the user.

    Raises:
        UserError: no such cluster, a folder that it does not share, or as :func:`run_job`.
    """
    out = out.absolute()
    opening = Opening(
        bundle_path(model), engine, precision, threads, MOST if auto_batch else job.batch, job.size
    )
    with connected(address) as cluster:
        tell(f"ray: {cluster}")
        slot = choose_slot(
            cluster, engine, threads, lambda s: run_on_worker(s, _engine_name, opening)
        )
        opening = replace(opening, threads=slot.threads)
        if auto_batch:
            batch = run_on_worker(slot, _fastest_batch, opening)
            tell(f"batch: {batch}")
            job, opening = replace(job, batch=batch), replace(opening, batch=batch)
        return _draw(cluster, slot, job, opening, out, verify, tell)


def _draw(
    cluster: Cluster,
    slot: Slot,
    job: Job,
    opening: Opening,
    out: Path,
    verify: bool,
    tell: Tell,
) -> Generated:
    shards = slot.shards(math.ceil(job.count / job.batch))
    tell(f"ray: {slot}, {shards} shards")
    there = sum(lines_in(path) for path in (out / MANIFEST, *out.glob("manifest-*.jsonl")))
    start = time.monotonic()
    work = partial(_draw_shard, opening, job, out, verify)
    outcome = run_shards(
        cluster, slot, work, out, shards, "images", job.count, min(there, job.count), tell
    )
    seconds = time.monotonic() - start
    results = outcome.results
    if all(result.lacking for result in results):
        # A network file system may show the last lines of other machines late.
        whole = run_on_worker(slot, _draw_shard, opening, job, out, False, Shard(), None)
        if whole.lacking:
            raise UserError(f"{out}: lacks {whole.lacking} images; give the same command again")
    # What a lost worker drew was there already for the one that went on.
    found = min(there, sum(result.found for result in results))
    return Generated(out, job.count - found, found, 0, seconds)


def _draw_shard(
    opening: Opening,
    job: Job,
    out: Path,
    verify: bool,
    shard: Shard,
    messenger: Messenger | None,
) -> Generated:
    """Draw a shard, on a worker."""
    generator = _generator(opening)
    if messenger is None:
        return run_job(job, generator, out, shard, verify, lambda images: None)
    for line in generator.passed_over:
        messenger.tell(f"{messenger.host}: {line}")
    messenger.tell(f"engine at {messenger.host}: {generator.engine.info}")
    place = generator.prepare(job.batch, job.size)
    messenger.tell(f"loop at {messenger.host}: {place}")
    return run_job(job, generator, out, shard, verify, messenger.count)


def _engine_name(opening: Opening) -> str:
    return _generator(opening).engine.info.engine


def _fastest_batch(opening: Opening) -> int:
    return fastest_batch(_generator(opening), opening.size)


@lru_cache(maxsize=1)
def _generator(opening: Opening) -> Generator:
    """The denoiser of this worker, which draws one shard after another with it."""
    generator = Generator.open(
        opening.model,
        opening.engine,
        opening.precision,
        opening.threads,
        opening.batch,
        opening.size,
    )
    generator.check_size(opening.size)
    return generator
