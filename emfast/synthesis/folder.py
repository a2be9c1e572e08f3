"""A set of labelled images on disk, which several runs can fill together without locks.

job.json               what is drawn; a folder with another job is refused
images/                NNNNNN.png, grey
masks/                 NNNNNN.png, 0 and 255 (labels, where a model has several classes)
pairs/                 NNNNNN.png, the paper's RGB pairs, on request
manifest-I-of-N.jsonl  what shard I of N drew; merged and removed when the set is whole
manifest.jsonl         one line an image, in their order: index, seed, sampler, engine, precision,
                       bundle, size and SHA-256 of the files
contact.png            the first images with their masks outlined

Each shard writes its own images and appends to its own part of the manifest. Who finds the set
whole merges the parts; who finds a part gone reads what was merged.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from emfast.channels import Uint8
from emfast.data.image import read_image
from emfast.pictures import contact_sheet
from emfast.synthesis.shard import Shard
from engines.errors import UserError
from engines.files import atomic_write, sha256

CONTACT_IMAGES = 12
JOB = "job.json"
MANIFEST = "manifest.jsonl"


class SetFolder:
    """The folder of a set, opened for one shard.

    Args:
        path: new, empty, or holding the same job, of at most as many images.
        record: what is drawn, JSON-ready; ``count`` may grow, and ``passed_over`` and the engine's
            device may differ from call to call.
        shard: that draws.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """

    def __init__(self, path: Path, record: dict[str, Any], shard: Shard) -> None:
        self.path = path
        self.shard = shard
        self.kinds = ("images", "masks", "pairs") if record["pairs"] else ("images", "masks")
        self._part = path / f"manifest-{shard}.jsonl"
        try:
            self._claim(record)
            for kind in self.kinds:
                (path / kind).mkdir(exist_ok=True)
            for place in (path, *(path / kind for kind in self.kinds)):
                self._remove_leftovers(place)
            if self._part.exists():
                _cut_torn_line(self._part)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None

    def missing(self, count: int, block: int = 1, verify: bool = False) -> npt.NDArray[np.int64]:
        """Numbers of the images that this shard has to draw, in their order.

        An image is there when a manifest lists it and its files have the size that they were
        written with: files appear whole or not at all, so another content means that somebody
        changed them, for which ``verify`` looks.

        Args:
            count: of images in the set.
            block: images in a row that one shard draws.
            verify: compare the SHA-256 of the files too.
        """
        todo = self.shard.owned(count, block)
        for source in self._sources():
            for _, entry in _entries(source):
                index = entry["index"]
                if index < count and todo[index] and self._holds(entry, verify):
                    todo[index] = False
        return np.flatnonzero(todo)

    def write(self, index: int, pixels: dict[str, Uint8]) -> dict[str, Any]:
        """Write the files of one image.

        Args:
            index: of the image in the set.
            pixels: uint8 (height, width), or (height, width, 3) for the pair, by kind.

        Returns:
            Size and SHA-256 of each file, for its line of the manifest.
        """
        files = {}
        for kind in self.kinds:
            buffer = BytesIO()
            Image.fromarray(pixels[kind]).save(buffer, "png")
            data = buffer.getvalue()
            name = _file(kind, index)
            with atomic_write(self.path / name, str(self.shard)) as temporary:
                temporary.write_bytes(data)
            files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return files

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """List images whose files are written."""
        try:
            with self._part.open("a") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)
        except OSError as error:
            raise UserError(f"{self._part}: cannot be written ({error.strerror})") from None

    def finish(self) -> int:
        """Merge the manifest when every image is there.

        Returns:
            Number of images that the set still lacks.
        """
        try:
            with tempfile.TemporaryFile() as lines:
                return self._merge(lines)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _merge(self, lines: Any) -> int:
        # Another call may have asked for more images since this one began.
        count = json.loads((self.path / JOB).read_text())["count"]
        # A set may be large: its lines wait in a file, and memory holds where each one begins.
        begins = np.full(count, -1, dtype=np.int64)
        sizes = {}
        for source in self._sources():
            sizes[source] = source.stat().st_size if source.exists() else 0
            for line, entry in _entries(source):
                index = entry["index"]
                if index >= count:
                    continue
                if begins[index] >= 0:
                    lines.seek(begins[index])
                    # Drawn twice, because its files were damaged: the line that is true of them.
                    if lines.readline() == line or not self._holds(entry, verify=True):
                        continue
                begins[index] = lines.seek(0, os.SEEK_END)
                lines.write(line)
        parts = [source for source in sizes if source.name != MANIFEST]
        lacking = int((begins < 0).sum())
        if lacking or not parts:
            return lacking
        self._write_contact(min(count, CONTACT_IMAGES))
        with (
            atomic_write(self.path / MANIFEST, str(self.shard)) as temporary,
            temporary.open("wb") as out,
        ):
            for begin in begins:
                lines.seek(begin)
                out.write(lines.readline())
        for part in parts:
            # One that grew belongs to a run that makes the set larger.
            if part.exists() and part.stat().st_size == sizes[part]:
                part.unlink(missing_ok=True)
        return 0

    def _sources(self) -> Iterator[Path]:
        """The files that list images.

        The merged one comes last: a part that is gone by the time it is read was merged before.
        """
        yield from sorted(self.path.glob("manifest-*.jsonl"))
        yield self.path / MANIFEST

    def _holds(self, entry: dict[str, Any], verify: bool) -> bool:
        """Whether the files of a line are there."""
        for name, file in entry["files"].items():
            path = f"{self.path}/{name}"
            try:
                if os.stat(path).st_size != file["bytes"]:
                    return False
            except FileNotFoundError:
                return False
            if verify and sha256(Path(path)) != file["sha256"]:
                return False
        return True

    def _claim(self, record: dict[str, Any]) -> None:
        """Write the job's description first, or compare it with the one that is there."""
        path = self.path / JOB
        foreign = self.path.exists() and (
            not self.path.is_dir()
            or any(not p.name.startswith(".job.") for p in self.path.iterdir())
        )
        # In this order: another shard may be making the folder at this moment.
        if not path.exists():
            if foreign:
                raise UserError(
                    f"{self.path}: exists and is not a set that emfast drew; give another --out"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            if self._create(path, _json(record)):
                return
        try:
            then = dict(json.loads(path.read_text()))
            count = int(then["count"])
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{path}: is damaged; remove {self.path} or give another --out"
            ) from None
        settled, wanted = _settled(then), _settled(record)
        changed = [key for key in wanted if wanted[key] != settled.get(key)]
        if changed:
            told = "; ".join(f"{k} was {settled.get(k)}, is {wanted[k]}" for k in changed)
            raise UserError(f"{self.path}: holds another job ({told}); give another --out")
        if count > record["count"]:
            raise UserError(
                f"{self.path}: is a set of {count} images and does not shrink to "
                f"{record['count']}; give --count {count} or more, or another --out"
            )
        if count < record["count"]:
            with atomic_write(path, str(self.shard)) as temporary:
                temporary.write_text(_json({**then, "count": record["count"]}))

    def _create(self, path: Path, text: str) -> bool:
        """Write a file unless another shard was first; shards may start at the same moment."""
        temporary = path.with_name(f".{path.stem}.{self.shard}.{os.getpid()}.tmp{path.suffix}")
        temporary.write_text(text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _remove_leftovers(self, place: Path) -> None:
        """Remove what a killed run was writing, and nothing that another shard is writing."""
        for path in place.glob(".*.tmp*"):
            writer = re.search(r"\.(\d+)-of-(\d+)\.\d+\.tmp", path.name)
            if (
                writer
                and writer[2] == str(self.shard.count)
                and writer[1] != str(self.shard.number)
            ):
                continue
            path.unlink(missing_ok=True)

    def _write_contact(self, count: int) -> None:
        images, masks = (
            np.stack([read_image(self.path / _file(kind, i)) for i in range(count)])
            for kind in ("images", "masks")
        )
        with atomic_write(self.path / "contact.png", str(self.shard)) as temporary:
            contact_sheet(images, masks).save(temporary)


def _file(kind: str, index: int) -> str:
    return f"{kind}/{index:06d}.png"


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"


def _settled(record: dict[str, Any]) -> dict[str, Any]:
    """What every call of a job must agree on: what changes the images' bytes."""
    engine = {k: v for k, v in record.get("engine", {}).items() if k != "device"}
    rest = {k: v for k, v in record.items() if k not in ("count", "passed_over")}
    return {**rest, "engine": engine}


def _entries(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Lines of a manifest and what they say; a torn one counts as none, a missing file as empty."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if line.endswith(b"\n"):
                yield line, entry


def _cut_torn_line(path: Path) -> None:
    """Cut off the end of a manifest that a killed run did not write to its end."""
    with path.open("r+b") as file:
        data_end = file.seek(0, os.SEEK_END)
        begin = max(0, data_end - 65536)
        file.seek(begin)
        file.truncate(begin + file.read().rfind(b"\n") + 1)
