"""The bundle: a folder with a network's graphs and all that is needed to run them.

    manifest.json     inputs and outputs, graphs by precision, what the domain needs, file hashes
    model.onnx        the reference graph, FP32, weights inside, dynamic batch
    model-fp16.onnx   other precisions, where they were exported: FP16 for GPUs,
    model-int8.onnx   INT8 for CPUs
    README.md         the card

``export`` writes bundles and this module opens them; nothing else parses the manifest.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from engines.errors import UserError
from engines.files import sha256

FORMAT = 1
PRECISIONS = ("fp32", "fp16", "int8")
MANIFEST = "manifest.json"
SHIPPED = Path(__file__).parent / "models"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: in the graph.
        dtype: numpy's name of it.
        shape: a number for a fixed axis, a name ("batch", "height") for a free one.
        meaning: values, range and unit in words.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` holds.

    Attributes:
        kind: "denoiser" or "segmenter".
        name: of the model, for people.
        emfast: version that exported it.
        inputs, outputs: of every graph; precisions differ inside only.
        multiple: height and width must be divisible by this number.
        graphs: file name of the graph for each precision of :data:`PRECISIONS`.
        model: what the domain needs: a denoiser's schedule and channels, a segmenter's
            preprocessing.
        training: data, settings, hardware and time.
        metrics: measured scores.
        verification: how far each graph was from the PyTorch network, and the tolerance.
        files: SHA-256 of every other file of the bundle.
    """

    kind: str
    name: str
    emfast: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    multiple: int
    graphs: dict[str, str]
    model: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of :meth:`to_json`; ValueError, KeyError or TypeError for another text."""
        values = json.loads(text)
        version = values.pop("format")
        if version != FORMAT:
            raise ValueError(f"format {version} instead of {FORMAT}")
        for key in ("inputs", "outputs"):
            values[key] = tuple(
                TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in values[key]
            )
        manifest = cls(**values)
        if not manifest.inputs or not manifest.outputs:
            raise ValueError("no inputs or outputs")
        if not manifest.graphs or not set(manifest.graphs) <= set(PRECISIONS):
            raise ValueError(f"graphs of {list(manifest.graphs)} instead of {list(PRECISIONS)}")
        if not isinstance(manifest.multiple, int) or manifest.multiple < 1:
            raise ValueError(f"multiple {manifest.multiple!r} instead of a number from 1")
        if not isinstance(manifest.files, dict) or not isinstance(manifest.graphs, dict):
            raise TypeError("graphs and files must be objects")
        return manifest


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, whose files matched their hashes."""

    path: Path
    manifest: Manifest

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the manifest, which holds those of all other files."""
        return sha256(self.path / MANIFEST)

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that the bundle has graphs for."""
        return tuple(self.manifest.graphs)

    def graph(self, precision: str) -> Path:
        """The ONNX file of a precision; :class:`UserError` lists those that exist."""
        if precision not in self.manifest.graphs:
            raise UserError(
                f"{self.path}: has no {precision} graph; it has {', '.join(self.precisions)}"
            )
        return self.path / self.manifest.graphs[precision]


def shipped_bundles() -> list[str]:
    """Names of the bundles that come with the package."""
    return sorted(p.parent.name for p in SHIPPED.glob(f"*/{MANIFEST}"))


def open_bundle(source: str | Path, kind: str | None = None) -> Bundle:
    """Open a bundle and check its files.

    Args:
        source: the name of a shipped bundle, or a folder; ./NAME for a folder of such a name.
        kind: the kind that the caller needs.

    Raises:
        UserError: no such bundle, a missing or altered file (named), or another kind.
    """
    path = SHIPPED / str(source) if str(source) in shipped_bundles() else Path(source)
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise UserError(
            f"{source}: is not a bundle (no {MANIFEST}); give a bundle's folder or one of the "
            f"shipped: {', '.join(shipped_bundles())}"
        )
    try:
        manifest = Manifest.from_json(manifest_path.read_text())
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{manifest_path}: is not a manifest that emfast reads ({error})") from None
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file}: is missing; copy the bundle again")
        if sha256(file) != expected:
            raise UserError(f"{file}: was altered or damaged (SHA-256 differs); copy it again")
    unlisted = sorted(set(manifest.graphs.values()) - set(manifest.files))
    if unlisted:
        raise UserError(f"{manifest_path}: has no SHA-256 for {unlisted[0]}; export it again")
    if kind is not None and manifest.kind != kind:
        raise UserError(f"{source}: is a {manifest.kind}, but this needs a {kind}")
    return Bundle(path, manifest)
