"""The scores of a set on disk: written as they are made, so that a killed run goes on.

KEY.json    by what the images were judged, and the limits that the real tiles set
KEY.jsonl   one line an image, in the order of the set's manifest

KEY is a hash of what decides the scores: other real slices, another segmenter or engine make files
of their own beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from emfast.selection.reference import Limits
from emfast.selection.scores import Scores
from emfast.synthesis.manifest import line
from engines.errors import UserError
from engines.files import atomic_write

# Images that are scored together. Blocks begin at multiples of it, whatever was killed or grew:
# some engines round differently in other batches.
BLOCK = 64


class Ledger:
    """Scores of a set that were made under the same conditions.

    Args:
        folder: made where it is missing.
        judged_by: what decides the scores, JSON-ready.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path, judged_by: dict[str, Any]) -> None:
        self._judged_by = judged_by
        text = json.dumps(judged_by, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        self._head, self._lines = folder / f"{key}.json", folder / f"{key}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines.touch()
        except OSError as error:
            raise UserError(
                f"{folder}: scores cannot be kept there ({error.strerror}); name another folder "
                "with --scores"
            ) from None

    @property
    def limits(self) -> Limits | None:
        """What the real tiles set; None before :meth:`keep_limits`."""
        try:
            return Limits.from_dict(json.loads(self._head.read_text())["limits"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._head}: is damaged; remove it ({error})") from None

    def keep_limits(self, limits: Limits) -> None:
        """Write down what the real tiles set."""
        values = {"judged_by": self._judged_by, "limits": limits.to_dict()}
        with atomic_write(self._head) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n")

    def known(self, entries: Iterable[dict[str, Any]]) -> int:
        """Number of images from the first one on whose scores are there; others are forgotten.

        Args:
            entries: lines of the set's manifest. An image or mask with another hash is another one.
        """
        scored = self._read()
        count = end = known = known_end = 0
        for entry in entries:
            text, scores = next(scored, (b"", None))
            if scores is None or not _same(entry, scores):
                break
            count, end = count + 1, end + len(text)
            if count % BLOCK == 0:
                known, known_end = count, end
        else:  # all of the set, whose last block may be a part of one
            known, known_end = count, end
        os.truncate(self._lines, known_end)
        return known

    def append(self, scores: Sequence[Scores]) -> None:
        """Write the scores of the next images."""
        try:
            with self._lines.open("ab") as file:
                file.write(b"".join(line(image.to_dict()) for image in scores))
        except OSError as error:
            raise UserError(f"{self._lines}: cannot be written ({error.strerror})") from None

    def __iter__(self) -> Iterator[Scores]:
        return (scores for _, scores in self._read())

    def _read(self) -> Iterator[tuple[bytes, Scores]]:
        """Whole lines and what they say, up to one that a killed run tore."""
        with self._lines.open("rb") as file:
            for text in file:
                try:
                    scores = Scores.from_dict(json.loads(text))
                except (ValueError, KeyError, TypeError):
                    return
                if not text.endswith(b"\n"):
                    return
                yield text, scores


def _same(entry: dict[str, Any], scores: Scores) -> bool:
    hashes = file_hashes(entry)
    return (entry["index"], hashes["images"], hashes["masks"]) == (
        scores.index,
        scores.image,
        scores.mask,
    )


def file_hashes(entry: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of an image's files by their kind, "images" and so on."""
    return {name.split("/")[0]: file["sha256"] for name, file in entry["files"].items()}
