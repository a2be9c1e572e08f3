"""A finished set as WebDataset tars.

    set-NNNNNN.tar   of each image NNNNNN.image.png, NNNNNN.mask.png, NNNNNN.pair.png where the set
                     has pairs, and NNNNNN.json, a line of the set's metadata.jsonl without paths
    pack.json        of which set, and how many images a tar
    tars.json        images, bytes and SHA-256 of each tar; appears last
    manifest.jsonl, README.md, contact.png

Tars hold neither times nor users, so that the same set gives the same bytes. Each appears whole or
not at all, and a killed run goes on with the tars that are missing.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emfast.progress import progress
from emfast.synthesis.card import CARD, CONTACT, card
from emfast.synthesis.manifest import COLUMNS, MANIFEST, metadata_line, read_job, read_manifest
from emfast.synthesis.publication import CONTACT_IMAGES
from emfast.synthesis.summary import Summary
from engines.errors import UserError
from engines.files import atomic_write, remove_leftovers, sha256

FORMAT = 1
# Tens of megabytes of 256 x 256 pixels: few files, and enough of them for many readers.
PER_TAR = 1000
PACK = "pack.json"
TARS = "tars.json"
# What a sample calls the files of a set.
PARTS = {"images": "image.png", "masks": "mask.png", "pairs": "pair.png"}

Entry = dict[str, Any]


@dataclass(frozen=True)
class Packed:
    """What :func:`pack_set` did.

    Attributes:
        folder: of the tars.
        written: tars of this call.
        found: tars that were there.
        images: in all tars.
    """

    folder: Path
    written: int
    found: int
    images: int


def pack_set(source: Path, out: Path, per_tar: int = PER_TAR) -> Packed:
    """Pack a finished set into tars, or what is missing of them.

    Args:
        source: a set that ``emfast generate`` or ``emfast select`` finished.
        out: new, empty, or holding the same set with as many images a tar.
        per_tar: images in each tar but the last.

    Raises:
        UserError: the set lacks images or differs from its manifest, the folder holds something
            else, or the disk is full.
    """
    if per_tar < 1:
        raise UserError(f"--per-tar {per_tar}: give a number of images from 1")
    record = read_job(source)
    listed = read_manifest(source)
    pack = {"format": FORMAT, "manifest": sha256(source / MANIFEST), "per_tar": per_tar}
    _claim(out, pack)
    tars: list[Entry] = []
    summary, written = Summary(), 0
    with progress("images", record["count"]) as advance:
        for number, entries in enumerate(_batched(listed, per_tar)):
            for entry in entries:
                summary.add(entry, CONTACT_IMAGES)
            path = out / f"set-{number:06d}.tar"
            if not (path.exists() and path.stat().st_size == _tar_bytes(entries)):
                _write_tar(path, source, entries)
                written += 1
            tars.append(
                {
                    "name": path.name,
                    "images": len(entries),
                    "bytes": path.stat().st_size,
                    "sha256": sha256(path),
                }
            )
            advance(len(entries))
    for name in (MANIFEST, CONTACT):
        with atomic_write(out / name) as temporary:
            shutil.copyfile(source / name, temporary)
    text = card(record, summary, str(pack["manifest"]), [tar["name"] for tar in tars])
    for name, content in ((CARD, text), (TARS, json.dumps(tars, indent=1) + "\n")):
        with atomic_write(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return Packed(out, written, len(tars) - written, summary.images)


def _claim(out: Path, pack: Entry) -> None:
    """Write what is packed first, or compare it with what is there."""
    path = out / PACK
    try:
        if not path.exists():
            if out.exists() and not (
                out.is_dir() and all(p.name.startswith(".") for p in out.iterdir())
            ):
                raise UserError(f"{out}: exists and is not a packed set; give another --out")
            out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        if not path.exists():
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(pack, indent=1) + "\n")
            return
        then = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{path}: is damaged; remove {out} or give another --out") from None
    if then != pack:
        reason = (
            f"of {then['per_tar']} images a tar"
            if {**then, "per_tar": pack["per_tar"]} == pack
            else "of another set, or of this one before it changed"
        )
        raise UserError(f"{out}: holds tars {reason}; give another --out")


def _write_tar(path: Path, source: Path, entries: Iterable[Entry]) -> None:
    with (
        atomic_write(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for entry in entries:
            for name, data in _members(source, entry):
                # Time and owner of a new TarInfo are 0.
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _members(source: Path, entry: Entry) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of what a tar holds of an image, checked against the manifest."""
    for name, file in entry["files"].items():
        path = source / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}); the command that drew the set draws "
                "it again"
            ) from None
        if hashlib.sha256(data).hexdigest() != file["sha256"]:
            raise UserError(
                f"{path}: differs from the manifest; the command that drew the set draws it again "
                "with --verify"
            )
        yield f"{entry['index']:06d}.{PARTS[path.parent.name]}", data
    yield f"{entry['index']:06d}.json", _json(entry)


def _json(entry: Entry) -> bytes:
    told = {k: v for k, v in metadata_line(entry).items() if k not in COLUMNS.values()}
    return json.dumps(told).encode()


def _tar_bytes(entries: Iterable[Entry]) -> int:
    """Size of the tar that :func:`_write_tar` makes."""
    members: list[int] = []
    for entry in entries:
        members += [*(file["bytes"] for file in entry["files"].values()), len(_json(entry))]
    blocks = sum(1 + -(-size // tarfile.BLOCKSIZE) for size in members) + 2
    return -(-blocks * tarfile.BLOCKSIZE // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _batched(entries: Iterator[Entry], size: int) -> Iterator[list[Entry]]:
    while batch := list(itertools.islice(entries, size)):
        yield batch
