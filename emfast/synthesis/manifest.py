"""The manifest of a set: one line of JSON an image, and what others make of it.

``manifest.jsonl`` is the record: its lines follow ``manifest.schema.json``. ``metadata.jsonl`` says
the same flat, in the columns that Hugging Face's imagefolder reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from engines.errors import UserError

JOB = "job.json"
MANIFEST = "manifest.jsonl"
METADATA = "metadata.jsonl"
# Folders of a set's files, and the columns of imagefolder that hold their paths.
COLUMNS = {"images": "file_name", "masks": "mask_file_name", "pairs": "pair_file_name"}


def file_name(kind: str, index: int) -> str:
    """Path of a file inside its set: "images/000003.png"."""
    return f"{kind}/{index:06d}.png"


def entries(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Lines of a manifest, or of a part of one, and what they say.

    A line that a killed run tore counts as none, and a missing file as empty.
    """
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


def read_manifest(folder: Path) -> Iterator[dict[str, Any]]:
    """The images of a finished set, in the order of their numbers.

    Args:
        folder: of the set.

    Raises:
        UserError: not a set, or one that still lacks images.
    """
    count = read_job(folder)["count"]
    listed = lines_in(folder / MANIFEST)
    if listed != count or any(folder.glob("manifest-*.jsonl")):
        raise UserError(
            f"{folder}: is not whole yet; give the emfast generate command that began it again"
        )
    return (entry for _, entry in entries(folder / MANIFEST))


def lines_in(path: Path) -> int:
    """Number of whole lines of a file; 0 where there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def read_job(folder: Path) -> dict[str, Any]:
    """What ``job.json`` of a set says; :class:`UserError` where it is missing or damaged."""
    path = folder / JOB
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: is not a set that emfast drew (no {JOB})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("count"), int):
        raise UserError(f"{path}: is damaged; it holds no count")
    return record


def line(entry: dict[str, Any]) -> bytes:
    """The line of a manifest, or of a metadata file, that says this."""
    return (json.dumps(entry) + "\n").encode()


def metadata_line(entry: dict[str, Any]) -> dict[str, Any]:
    """One line of ``metadata.jsonl`` from one of the manifest.

    Returns:
        A flat record: the paths of the files, which imagefolder opens as the columns "image",
        "mask" and "pair", then the image's number, how it was drawn and its scores.
    """
    paths = {
        column: name
        for kind, column in COLUMNS.items()
        for name in entry["files"]
        if name.startswith(f"{kind}/")
    }
    drawn = ("index", "seed", "sampler", "steps", "reuse", "engine", "precision")
    return {
        **paths,
        **{key: entry[key] for key in drawn if key in entry},
        **entry["scores"],
        **entry.get("selection", {}),
    }


def schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a line of ``manifest.jsonl``."""
    text = files("emfast.synthesis").joinpath("manifest.schema.json").read_text()
    return dict(json.loads(text))
