"""Comparing folders of sets in tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

from engines.files import sha256


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its path inside."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, hidden ones too, by its path inside."""
    return {str(p.relative_to(folder)): sha256(p) for p in folder.rglob("*") if p.is_file()}


def fabricate(base: Path, folder: Path, images: int, count: int) -> None:
    """Make a set that looks as if a run of ``count`` images was killed after ``images`` of them.

    Args:
        base: a small finished set, whose files are linked over and over.
        folder: to make.
        images: in the new set.
        count: that its job asks for.
    """
    record = json.loads((base / "job.json").read_text())
    small = [json.loads(line) for line in (base / "manifest.jsonl").read_text().splitlines()]
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({**record, "count": count}, indent=1) + "\n")
    with (folder / "manifest-1-of-1.jsonl").open("w") as lines:
        for index in range(images):
            entry = small[index % len(small)]
            files = {}
            for name, file in entry["files"].items():
                new = f"{name.partition('/')[0]}/{index:06d}.png"
                os.link(base / name, folder / new)
                files[new] = file
            lines.write(json.dumps({**entry, "index": index, "files": files}) + "\n")
