"""A set of labelled images as a job on disk: it can be killed and taken up again.

job.json        what is drawn: written first; a folder with another job is refused
images/         NNNNNN.png, grey
masks/          NNNNNN.png, 0 and 255 (labels, where a model has several classes)
pairs/          NNNNNN.png, the paper's RGB pairs, on request
manifest.jsonl  one line an image: index, seed, engine, precision, bundle, SHA-256 of the files
contact.png     the first images with their masks outlined
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emfast.channels import Uint8
from emfast.data.image import read_image
from emfast.data.pairs import encode_pair
from emfast.diffusion.noise import check_seed
from emfast.pictures import contact_sheet
from emfast.progress import progress
from emfast.synthesis.denoiser import Generator
from engines.errors import UserError
from engines.files import atomic_write, remove_leftovers, sha256

CONTACT_IMAGES = 12
MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Job:
    """What to draw.

    Attributes:
        count: number of images.
        seed: of the set; image i of a seed is the same whatever the count and the batch.
        steps: of sampling.
        size: height and width in pixels.
        batch: images that are drawn together. It is part of the job because a runtime may round
            differently for another batch.
        pairs: whether the paper's RGB pairs are written too.
    """

    count: int
    seed: int
    steps: int
    size: tuple[int, int]
    batch: int
    pairs: bool

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch < 1:
            raise UserError(f"count {self.count}, batch {self.batch}: both must be at least 1")
        check_seed(self.seed)

    def batches(self) -> Iterator[list[int]]:
        """Image numbers, batch by batch; always cut at the same places."""
        for start in range(0, self.count, self.batch):
            yield list(range(start, min(start + self.batch, self.count)))


@dataclass(frozen=True)
class Generated:
    """What :func:`run_job` did.

    Attributes:
        folder: of the set.
        drawn: images drawn by this call.
        found: whole images that an earlier run had left.
        seconds: spent on drawing.
    """

    folder: Path
    drawn: int
    found: int
    seconds: float


def run_job(job: Job, generator: Generator, folder: Path) -> Generated:
    """Draw a set, or what is missing of it, into a folder.

    A run that was killed ends, started again, with the same bytes as one that was not: images are
    drawn again unless the manifest lists them and their files match.

    Args:
        job: what to draw.
        generator: the denoiser on its engine.
        folder: new, empty, or holding the same job.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    generator.check_size(job.size)
    sampler = generator.spec.sampler(job.steps)
    record = _description(job, generator)
    _open_folder(folder, record)
    done = _verified(folder, record["model"]["sha256"])
    found = len(done)
    binary = sum(c.kind == "mask" for c in generator.spec.channels) == 1
    start = time.monotonic()
    steps = len(sampler.steps)
    note = ""
    with progress("steps", job.count * steps, found * steps) as advance:
        for indices in job.batches():
            missing = [i for i in indices if i not in done]
            if not missing:
                continue
            images, masks = generator.draw(
                indices, job.seed, job.steps, job.size, partial(advance, len(missing), note)
            )
            for index, image, mask in zip(indices, images, masks, strict=True):
                if index in missing:
                    shown = mask * np.uint8(255) if binary else mask
                    pixels = {"images": image, "masks": shown}
                    if job.pairs:
                        pixels["pairs"] = encode_pair(image, mask)
                    done[index] = _write_image(folder, job, record, index, pixels)
            _append(folder / MANIFEST, [done[i] for i in missing])
            speed = (len(done) - found) / (time.monotonic() - start)
            note = f"{len(done)} of {job.count} images, {speed:.3g} images/s"
            advance(0, note)
    seconds = time.monotonic() - start
    _write_lines(folder / MANIFEST, [done[i] for i in sorted(done)])
    _write_contact(folder, min(job.count, CONTACT_IMAGES))
    return Generated(folder, job.count - found, found, seconds)


def _description(job: Job, generator: Generator) -> dict[str, Any]:
    bundle, info = generator.bundle, generator.engine.info
    return {
        **asdict(job),
        "size": list(job.size),
        "sampler": "ddpm",
        "model": {"name": bundle.manifest.name, "sha256": bundle.sha256},
        "engine": info.to_dict(),
        "passed_over": list(generator.passed_over),
    }


def _open_folder(folder: Path, record: dict[str, Any]) -> None:
    """Write the job's description first, or compare it with the one that is there."""
    path = folder / "job.json"
    if path.exists():
        try:
            then = json.loads(path.read_text())
        except ValueError:
            raise UserError(f"{path}: is damaged; remove {folder} or give another --out") from None
        changed = [k for k in record if k != "passed_over" and record[k] != then.get(k)]
        if changed:
            told = "; ".join(f"{k} was {then.get(k)}, is {record[k]}" for k in changed)
            raise UserError(f"{folder}: holds another job ({told}); give another --out")
    elif folder.exists() and (
        not folder.is_dir() or any(not p.name.startswith(".job.") for p in folder.iterdir())
    ):
        raise UserError(f"{folder}: exists and is not a set that emfast drew; give another --out")
    parts = [folder / part for part in _files(0, record["pairs"])]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n")
        for part in parts:
            part.mkdir(exist_ok=True)
        for place in (folder, *parts):
            remove_leftovers(place)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None


def _files(index: int, pairs: bool) -> dict[str, str]:
    kinds = ("images", "masks", "pairs") if pairs else ("images", "masks")
    return {kind: f"{kind}/{index:06d}.png" for kind in kinds}


def _verified(folder: Path, bundle: str) -> dict[int, dict[str, Any]]:
    """The manifest's lines whose files are there and match; a torn last line counts as none."""
    path = folder / MANIFEST
    done: dict[int, dict[str, Any]] = {}
    if not path.exists():
        return done
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        files = entry["files"]
        if entry["bundle"] == bundle and all(
            (folder / name).is_file() and sha256(folder / name) == digest
            for name, digest in files.items()
        ):
            done[entry["index"]] = entry
    _write_lines(path, list(done.values()))
    return done


def _write_image(
    folder: Path, job: Job, record: dict[str, Any], index: int, pixels: dict[str, Uint8]
) -> dict[str, Any]:
    """Write the files of one image; returns its line of the manifest."""
    hashes = {}
    for kind, name in _files(index, job.pairs).items():
        with atomic_write(folder / name) as temporary:
            Image.fromarray(pixels[kind]).save(temporary)
        hashes[name] = sha256(folder / name)
    engine = record["engine"]
    return {
        "index": index,
        "seed": job.seed,
        "steps": job.steps,
        "sampler": record["sampler"],
        "engine": engine["engine"],
        "runtime": engine["version"],
        "precision": engine["precision"],
        "bundle": record["model"]["sha256"],
        "mask_area": round(float((pixels["masks"] > 0).mean()), 6),
        "files": hashes,
    }


def _append(path: Path, entries: list[dict[str, Any]]) -> None:
    try:
        with path.open("a") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def _write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def _write_contact(folder: Path, count: int) -> None:
    names = [_files(i, False) for i in range(count)]
    images = np.stack([read_image(folder / n["images"]) for n in names])
    masks = np.stack([read_image(folder / n["masks"]) for n in names])
    with atomic_write(folder / "contact.png") as temporary:
        contact_sheet(images, masks).save(temporary)
