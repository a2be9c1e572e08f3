"""What a segmentation was asked for and how far it is: segment.json and slices.jsonl.

segment.json           what is segmented and how; a folder with another run's is refused
slices-I-of-N.jsonl    one line for each slice that shard I of N wrote
slices.jsonl           the same of all shards, when every slice is there

Runs that share a folder need no locks: each writes its own lines, and who finds all slices listed
merges them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emfast.synthesis.shard import Shard
from engines.errors import UserError
from engines.files import atomic_write

RECORD = "segment.json"
SLICES = "slices.jsonl"
# What a slice's line holds; one that lacks an entry counts as none.
ENTRIES = {"index", "name", "stamp", "pixels", "classes", "invalid", "clipped", "blank"}
# Entries in which runs of one segmentation may differ.
FREE = (
    "passed_over",
    "decisions",
    "statistics",
    "coverage",
    "invalid",
    "clipped",
    "blank",
    "objects",
    "complete",
)


class Record:
    """The two files of a run, opened for one shard.

    Args:
        out: the folder.
        shard: that writes.
    """

    def __init__(self, out: Path, shard: Shard) -> None:
        self._out, self._shard = out, shard
        self._part = out / f"slices-{shard}.jsonl"

    def found(self, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """The description that is there, or None.

        Raises:
            UserError: it is damaged or that of another run; what differs is told.
        """
        path = self._out / RECORD
        try:
            then = dict(json.loads(path.read_text(encoding="utf-8")))
            if "input" not in then:
                raise ValueError("no description of a run")
        except FileNotFoundError:
            return None
        except PermissionError:
            raise UserError(f"{path}: may not be read") from None
        except (OSError, ValueError, TypeError):
            raise UserError(
                f"{path}: is damaged; remove it with the masks, or give another --out"
            ) from None
        before, now = _settled(then), _settled(wanted)
        differing = [key for key in {**now, **before} if before.get(key) != now.get(key)]
        if differing:
            told = "; ".join(f"{k} was {before.get(k)}, is {now.get(k)}" for k in differing)
            raise UserError(f"{self._out}: holds another run ({told}); give another --out")
        return then

    def claim(self, wanted: dict[str, Any]) -> None:
        """Write the description unless another shard was first; they may start together."""
        path = self._out / RECORD
        temporary = path.with_name(f".{path.stem}.{self._shard}.{os.getpid()}.tmp{path.suffix}")
        try:
            temporary.write_text(_json(wanted), encoding="utf-8")
            try:
                os.link(temporary, path)
            except FileExistsError:
                self.found(wanted)
            except OSError:  # a file system without hard links
                os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
        finally:
            temporary.unlink(missing_ok=True)

    def forget(self) -> None:
        """Drop the lines of an earlier run, whose slices are written anew."""
        for path in self._parts():
            path.unlink(missing_ok=True)
        (self._out / SLICES).unlink(missing_ok=True)

    def append(self, line: dict[str, Any]) -> None:
        """List a slice that is written."""
        with self._part.open("ab+") as file:
            # A killed run may have left a torn line.
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
                file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")

    def listed(self) -> dict[int, dict[str, Any]]:
        """The latest line of each slice."""
        lines: dict[int, dict[str, Any]] = {}
        for path in self._parts():
            lines.update((line["index"], line) for line in _lines(path))
        # Last: a part that is gone by the time it is read was merged before.
        for line in _lines(self._out / SLICES):
            lines.setdefault(line["index"], line)
        return lines

    def finish(self, lines: dict[int, dict[str, Any]], record: dict[str, Any]) -> None:
        """Merge the lines of all slices and write the final description."""
        with atomic_write(self._out / SLICES, str(self._shard)) as temporary:
            text = "".join(json.dumps(lines[i]) + "\n" for i in sorted(lines))
            temporary.write_text(text, encoding="utf-8")
        with atomic_write(self._out / RECORD, str(self._shard)) as temporary:
            temporary.write_text(_json(record), encoding="utf-8")
        for path in self._parts():
            path.unlink(missing_ok=True)

    def _parts(self) -> list[Path]:
        return sorted(self._out.glob("slices-*.jsonl"))


def file_stamp(path: Path) -> list[int]:
    """Size in bytes and time of the last change in ns, by which a changed file is known."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a file; a torn or foreign one counts as none, a missing file as empty."""
    try:
        file = path.open(encoding="utf-8")
    except FileNotFoundError:
        return
    with file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if text.endswith("\n") and isinstance(line, dict) and line.keys() >= ENTRIES:
                yield line


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"


def _settled(record: dict[str, Any]) -> dict[str, Any]:
    """What all runs of a segmentation must agree on: what changes the masks' bytes."""
    engine = record.get("engine")
    if isinstance(engine, dict):
        engine = {k: v for k, v in engine.items() if k != "device"}
    return {**{k: v for k, v in record.items() if k not in FREE}, "engine": engine}
