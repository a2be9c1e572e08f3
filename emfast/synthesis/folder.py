"""A set of labelled images on disk, which several runs can fill together without locks.

job.json               what is drawn; a folder with another job is refused
images/                NNNNNN.png, grey
masks/                 NNNNNN.png, 0 and 255 (labels, where a model has several classes)
pairs/                 NNNNNN.png, the paper's RGB pairs, on request
manifest-I-of-N.jsonl  what shard I of N drew; merged and removed when the set is whole

and once it is whole, what :func:`emfast.synthesis.publication.publish` makes of the parts:

manifest.jsonl         one line an image, in their order, as manifest.schema.json says
metadata.jsonl         the same, flat, for Hugging Face's imagefolder
contact.png            the first images with their masks outlined
README.md              the card

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
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from emfast.channels import Uint8
from emfast.synthesis.description import differences
from emfast.synthesis.manifest import JOB, MANIFEST, entries, file_name, line, lines_in
from emfast.synthesis.publication import PUBLISHED, publish
from emfast.synthesis.shard import Shard
from engines.errors import UserError
from engines.files import atomic_write, sha256


class SetFolder:
    """The folder of a set, opened for one shard.

    Args:
        path: new, empty, or holding the same job, of at most as many images.
        record: what is drawn, as :func:`emfast.synthesis.description.describe` gives it; ``count``
            may grow.
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
            for _, entry in entries(source):
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
            name = file_name(kind, index)
            with atomic_write(self.path / name, str(self.shard)) as temporary:
                temporary.write_bytes(data)
            files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return files

    def append(self, listed: Iterable[dict[str, Any]]) -> None:
        """List images whose files are written."""
        try:
            with self._part.open("ab") as file:
                end = file.tell()
                try:
                    file.write(b"".join(line(entry) for entry in listed))
                    file.flush()
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            raise UserError(f"{self._part}: cannot be written ({error.strerror})") from None

    def finish(self) -> int:
        """Merge the manifest when every image is there, and publish the set.

        Returns:
            Number of images that the set still lacks; fewer than that where images are listed
            twice, but never 0.
        """
        try:
            # Another call may have asked for more images since this one began.
            record = json.loads((self.path / JOB).read_text())
            sources = list(self._sources())
            # Counting lines is quick, where every shard of a large set asks.
            lacking = int(record["count"]) - sum(lines_in(source) for source in sources)
            published = all((self.path / name).exists() for name in PUBLISHED)
            if lacking > 0 or (len(sources) == 1 and published):
                return lacking
            # In the folder, and not where the system keeps such files: it may have no room.
            with tempfile.TemporaryFile(dir=self.path, prefix=".lines.", suffix=".tmp") as lines:
                return self._merge(record, lines)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _merge(self, record: dict[str, Any], lines: IO[bytes]) -> int:
        count = record["count"]
        # A set may be large: its lines wait in a file, and memory holds where each one begins.
        begins = np.full(count, -1, dtype=np.int64)
        sizes = {}
        for source in self._sources():
            sizes[source] = source.stat().st_size if source.exists() else 0
            for text, entry in entries(source):
                index = entry["index"]
                if index >= count:
                    continue
                if begins[index] >= 0:
                    lines.seek(begins[index])
                    # Drawn twice, because its files were damaged: the line that is true of them.
                    if lines.readline() == text or not self._holds(entry, verify=True):
                        continue
                begins[index] = lines.seek(0, os.SEEK_END)
                lines.write(text)
        parts = [source for source in sizes if source.name != MANIFEST]
        lacking = int((begins < 0).sum())
        if lacking:
            return lacking

        def ordered() -> Iterator[bytes]:
            for begin in begins:
                lines.seek(begin)
                yield lines.readline()

        publish(self.path, record, ordered(), str(self.shard))
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
        changed = differences(then, record)
        if changed:
            raise UserError(
                f"{self.path}: holds another job ({'; '.join(changed)}); give another --out, or "
                "the options that it was begun with"
            )
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
        try:
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
        number, count = self.shard.number, self.shard.count
        anothers = re.compile(rf"\.(?!{number}-)\d+-of-{count}\.\d+\.tmp")
        # A glob would hold all names of a large set.
        with os.scandir(place) as files:
            left = [
                file.path
                for file in files
                if file.name.startswith(".")
                and ".tmp" in file.name
                and not anothers.search(file.name)
            ]
        for path in left:
            Path(path).unlink(missing_ok=True)


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"


def _cut_torn_line(path: Path) -> None:
    """Cut off the end of a manifest that a killed run did not write to its end."""
    with path.open("r+b") as file:
        data_end = file.seek(0, os.SEEK_END)
        begin = max(0, data_end - 65536)
        file.seek(begin)
        file.truncate(begin + file.read().rfind(b"\n") + 1)
