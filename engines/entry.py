"""One engine of the cache: its file, and what the sidecar beside it says."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from engines.errors import UserError
from engines.files import sha256
from engines.recipe import FORMAT, Recipe


class DamagedError(Exception):
    """A sidecar that cannot be used; the message completes "the engine .."."""


class OtherFormatError(DamagedError):
    """A sidecar that another version of emfast wrote, and may still use."""


@dataclass(frozen=True)
class Verification:
    """That an engine was compared with a reference on one GPU, and passed.

    Attributes:
        gpu: ``str`` of its :class:`~engines.recipe.GpuIdentity`.
        reference: what it was compared with.
        measures: one object for each comparison, JSON-ready.
        seconds: that it took.
        date: in ISO 8601.
    """

    gpu: str
    reference: str
    measures: list[dict[str, Any]]
    seconds: float
    date: str


@dataclass(frozen=True)
class Entry:
    """An engine of the cache.

    Attributes:
        path: of the engine file.
        recipe: that it was built by.
        sha256: of the file's bytes.
        size: of the file, in bytes.
        built: when, in ISO 8601.
        seconds: that the build took.
        facts: about the engine, as the builder gave them.
        verifications: that it passed, one a GPU.
    """

    path: Path
    recipe: Recipe
    sha256: str
    size: int
    built: str
    seconds: float
    facts: dict[str, Any]
    verifications: tuple[Verification, ...]

    @classmethod
    def new(
        cls,
        path: Path,
        recipe: Recipe,
        plan: bytes,
        seconds: float,
        facts: dict[str, Any],
        verifications: tuple[Verification, ...],
    ) -> Self:
        """The entry of an engine that was built now."""
        built = datetime.now(UTC).isoformat(timespec="seconds")
        digest = hashlib.sha256(plan).hexdigest()
        return cls(path, recipe, digest, len(plan), built, seconds, facts, verifications)

    @property
    def sidecar(self) -> Path:
        """The JSON file beside the engine."""
        return self.path.with_suffix(".json")

    def read(self) -> bytes:
        """The engine file's bytes.

        Raises:
            UserError: the file is gone, or is not the one that was written.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{self.path}: cannot be read ({reason}); run again") from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise UserError(f"{self.path}: was altered or damaged; run again to build a new one")
        return content

    def damage(self, whole: bool = True) -> str | None:
        """What is wrong with the engine file, completing "the engine .."; None if nothing is.

        Args:
            whole: compare the SHA-256 too, not the size alone.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            size = self.path.stat().st_size
            if size != self.size:
                return f"was cut or damaged: {size} bytes instead of {self.size}"
            if whole and sha256(self.path) != self.sha256:
                return "was altered or damaged (SHA-256 differs)"
        except FileNotFoundError:
            return "is missing, though its sidecar is there"
        return None

    def verified_by(self, verification: Verification) -> Self:
        """This entry with one more verification, in place of an earlier one on the same GPU."""
        others = [v for v in self.verifications if v.gpu != verification.gpu]
        return replace(self, verifications=(*others, verification))

    def to_json(self) -> str:
        """The text of the sidecar."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "path"}
        values["recipe"] = self.recipe.to_dict()
        values["verifications"] = [asdict(v) for v in self.verifications]
        return json.dumps({"format": FORMAT, **values}, indent=1) + "\n"

    @classmethod
    def load(cls, sidecar: Path) -> Self | None:
        """Read a sidecar; None where there is none.

        Raises:
            OtherFormatError: the sidecar is of another version of emfast.
            DamagedError: it is not a sidecar, or not that of its file name.
            OSError: it cannot be read.
        """
        try:
            values = json.loads(sidecar.read_bytes())
            written = values.pop("format")
            if isinstance(written, int) and written != FORMAT:
                raise OtherFormatError(
                    f"is of cache format {written}; this emfast reads format {FORMAT}"
                )
            recipe = Recipe.from_dict(values.pop("recipe"))
            verifications = tuple(Verification(**v) for v in values.pop("verifications"))
            path = sidecar.with_suffix(".engine")
            entry = cls(path=path, recipe=recipe, verifications=verifications, **values)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
            raise DamagedError(f"has a damaged or alien sidecar ({error})") from None
        if recipe.name != sidecar.stem:
            raise DamagedError("has the sidecar of another recipe, or an altered one")
        return entry
