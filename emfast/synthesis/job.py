"""A set of labelled images as a job: it can be killed, taken up again, shared and made larger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emfast.channels import Uint8
from emfast.data.pairs import encode_pair
from emfast.diffusion.noise import check_seed
from emfast.progress import progress
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.folder import SetFolder
from emfast.synthesis.shard import Shard
from engines.errors import UserError

# Engines that give an image the same bits in a batch of any size and with any number of threads;
# the others choose their kernels by the shape, and round differently.
BATCH_INVARIANT = ("onnxruntime-cpu",)


@dataclass(frozen=True)
class Job:
    """What to draw.

    Attributes:
        count: number of images; a set can be made larger later.
        seed: of the set; image i of a seed is the same whatever the count.
        steps: of sampling.
        size: height and width in pixels.
        batch: images that are drawn together.
        pairs: whether the paper's RGB pairs are written too.
        sampler: one of :data:`emfast.diffusion.samplers.SAMPLERS`.
        eta: of "ddim".
    """

    count: int
    seed: int
    steps: int
    size: tuple[int, int]
    batch: int
    pairs: bool
    sampler: str = "ddpm"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch < 1:
            raise UserError(f"count {self.count}, batch {self.batch}: both must be at least 1")
        check_seed(self.seed)


@dataclass(frozen=True)
class Generated:
    """What :func:`run_job` did.

    Attributes:
        folder: of the set.
        drawn: images drawn by this call.
        found: images of this shard that an earlier run had left.
        lacking: images that the set still lacks, which other shards draw.
        seconds: spent on drawing.
    """

    folder: Path
    drawn: int
    found: int
    lacking: int
    seconds: float


def run_job(
    job: Job,
    generator: Generator,
    folder: Path,
    shard: Shard | None = None,
    verify: bool = False,
) -> Generated:
    """Draw a set, or what is missing of it, into a folder.

    A run that was killed ends, started again, with the same bytes as one that was not, and shards
    end with the same bytes as one run: images are drawn again unless the manifest lists them and
    their files are there.

    Args:
        job: what to draw.
        generator: the denoiser on its engine.
        folder: new, empty, or holding the same job, of at most as many images.
        shard: the part of the set that this call draws; all of it by default.
        verify: compare the SHA-256 of files that are there, instead of their size alone.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    shard = shard or Shard()
    generator.check_size(job.size)
    sampler = generator.spec.sampler(job.steps, job.sampler, job.eta)
    invariant = generator.engine.info.engine in BATCH_INVARIANT
    block = 1 if invariant else job.batch
    record = _description(job, generator, invariant)
    place = SetFolder(folder, record, shard)
    missing = place.missing(job.count, block, verify)
    found = int(shard.owned(job.count, block).sum()) - len(missing)
    write = partial(_write, place, record, sum(c.kind == "mask" for c in generator.spec.channels))
    start = time.monotonic()
    steps, drawn, note = len(sampler.steps), 0, ""
    # Images are decoded and written while the next batch is drawn.
    written: Future[None] | None = None
    with (
        progress("steps", (found + len(missing)) * steps, found * steps) as advance,
        ThreadPoolExecutor(1, "writer") as writer,
    ):
        for indices, wanted in _batches(missing, job.batch, invariant):
            decoded = generator.sample(
                indices,
                job.seed,
                job.steps,
                job.size,
                partial(advance, len(wanted), note),
                job.sampler,
                job.eta,
            )
            if written is not None:
                written.result()
            written = writer.submit(write, indices, wanted, decoded)
            drawn += len(wanted)
            speed = drawn / (time.monotonic() - start)
            note = f"{found + drawn} of {found + len(missing)} images, {speed:.3g} images/s"
            advance(0, note)
        if written is not None:
            written.result()
    seconds = time.monotonic() - start
    return Generated(folder, drawn, found, place.finish(), seconds)


def _batches(
    missing: npt.NDArray[np.int64], batch: int, invariant: bool
) -> Iterator[tuple[list[int], list[int]]]:
    """Images that are drawn together, and those of them that are wanted.

    Args:
        missing: numbers of the images to draw, ascending.
        batch: images that are drawn together.
        invariant: whether an image is the same in every batch. Where it is not, batches are always
            cut at the same places and full, beyond the end of the set too: it may grow.
    """
    if invariant:
        for start in range(0, len(missing), batch):
            indices = missing[start : start + batch].tolist()
            yield indices, indices
        return
    for block in np.unique(missing // batch).tolist():
        yield (
            list(range(block * batch, (block + 1) * batch)),
            missing[missing // batch == block].tolist(),
        )


def _description(job: Job, generator: Generator, invariant: bool) -> dict[str, Any]:
    bundle, info = generator.bundle, generator.engine.info
    place = generator.prepare(job.batch, job.size).name
    return {
        **asdict(job),
        "size": list(job.size),
        "batch": None if invariant else job.batch,
        # The loop on the device rounds differently from the one on the host.
        "loop": None if place == "host" else place,
        "eta": job.eta if job.sampler == "ddim" else None,
        "model": {"name": bundle.manifest.name, "sha256": bundle.sha256},
        "engine": info.to_dict(),
        "passed_over": list(generator.passed_over),
    }


def _write(
    place: SetFolder,
    record: dict[str, Any],
    classes: int,
    indices: list[int],
    wanted: list[int],
    decoded: Callable[[], tuple[Uint8, Uint8]],
) -> None:
    """Write those images of a batch that are wanted, then list them."""
    entries = []
    images, masks = decoded()
    for index, image, mask in zip(indices, images, masks, strict=True):
        if index not in wanted:
            continue
        pixels = {"images": image, "masks": mask * np.uint8(255) if classes == 1 else mask}
        if record["pairs"]:
            pixels["pairs"] = encode_pair(image, mask)
        engine = record["engine"]
        entries.append(
            {
                "index": index,
                "seed": record["seed"],
                "steps": record["steps"],
                "sampler": record["sampler"],
                "eta": record["eta"],
                "engine": engine["engine"],
                "runtime": engine["version"],
                "precision": engine["precision"],
                "bundle": record["model"]["sha256"],
                "mask_area": round(float((mask > 0).mean()), 6),
                "files": place.write(index, pixels),
            }
        )
    place.append(entries)
