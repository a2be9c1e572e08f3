"""What `emfast select` rejects and keeps: bad samples planted among real held-out pairs.

The real slices to compare with are 0 to 134, which the shipped segmenter was trained on; good
samples are pairs from slices 140 to 164, which it has not seen, and bad ones are made from such
pairs:

    python benchmarks/selection.py --data epfl --out benchmarks/results/selection.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter

from emfast.benchmark.machine import machine_facts, matmul_rate
from emfast.benchmark.table import machine_line, markdown_table
from emfast.data.stack import Stack, read_stack
from emfast.quality.features import FeatureNetwork
from emfast.quality.image_scores import image_scores
from emfast.quality.novelty import PlaceSearch
from emfast.segmentation.segmenter import Segmenter
from emfast.selection import Rules, select_set
from emfast.selection.source import png
from emfast.synthesis.description import describe
from emfast.synthesis.manifest import file_name, line
from emfast.synthesis.publication import publish
from emfast.training.batches import flip_turn
from engines.bundle import open_bundle
from engines.engine import EngineInfo

Uint8 = npt.NDArray[np.uint8]
Pair = tuple[Uint8, Uint8]

SIDE = 256
REFERENCE = range(135)
HELD_OUT = range(140, 165)
# Share of object pixels from which an image is one "with mitochondria".
OBJECTS = 0.01
# Images that are timed.
TIMED = 32


class Samples:
    """Good and bad samples of a real stack.

    Args:
        stack: the real slices with masks.
        rng: source of the choices.
        reference: the slices to compare with, of which copies are made.
    """

    def __init__(
        self, stack: Stack, rng: np.random.Generator, reference: range = REFERENCE
    ) -> None:
        self._images, self._masks, self._rng = stack.images, stack.labels(), rng
        self._reference = reference

    def held_out(self) -> Pair:
        """A pair that neither the reference nor the segmenter has seen."""
        return self._cut(HELD_OUT)

    def shifted(self, pixels: int) -> Pair:
        """The mask of the place ``pixels`` beside, along an axis."""
        while True:
            z, y, x = self._place(HELD_OUT, margin=pixels)
            dy, dx = ((pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels))[self._rng.integers(4)]
            image, mask = self._window(z, y, x)
            moved = self._window(z, y + dy, x + dx)[1]
            if min(mask.mean(), moved.mean()) >= OBJECTS:
                return image, moved

    def emptied(self) -> Pair:
        """An image with mitochondria and an empty mask."""
        image, mask = self._with_objects()
        return image, np.zeros_like(mask)

    def noise(self) -> Pair:
        """An image without structure, with the mask of another or none."""
        image, mask = self.held_out()
        shape = image.shape
        kind = self._rng.integers(4)
        greys: npt.NDArray[np.float64]
        if kind == 0:
            greys = self._rng.uniform(0, 255, shape)
        elif kind == 1:
            greys = self._rng.normal(image.mean(), image.std(), shape)
        elif kind == 2:
            greys = gaussian_filter(self._rng.normal(size=shape), 1.5)
            greys = image.mean() + image.std() * greys / greys.std()
        else:
            greys = self._rng.permutation(image.ravel()).reshape(shape).astype(np.float64)
        if self._rng.integers(2):
            mask = np.zeros_like(mask)
        return np.clip(np.rint(greys), 0, 255).astype(np.uint8), mask

    def copied(self) -> Pair:
        """A place of the reference, flipped or turned."""
        symmetry = int(self._rng.integers(8))
        image, mask = self._cut(self._reference)
        return flip_turn(image, symmetry), flip_turn(mask, symmetry)

    def specked(self) -> Pair:
        """A pair with one to five specks of 4 to 63 pixels on the mask's background."""
        image, mask = self.held_out()
        mask = mask.copy()
        for _ in range(self._rng.integers(1, 6)):
            self._add_speck(mask)
        return image, mask

    def _add_speck(self, mask: Uint8) -> None:
        radius = 5
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        nearest = np.argsort((y**2 + x**2).ravel(), kind="stable")
        speck = np.zeros(y.size, dtype=np.uint8)
        speck[nearest[: self._rng.integers(4, 64)]] = 1
        while True:
            top, left = self._rng.integers(2, SIDE - 2 * radius - 3, 2)
            around = mask[top - 1 : top + y.shape[0] + 1, left - 1 : left + y.shape[1] + 1]
            if not around.any():
                around[1:-1, 1:-1] = speck.reshape(y.shape)
                return

    def _with_objects(self) -> Pair:
        while True:
            image, mask = self.held_out()
            if mask.mean() >= OBJECTS:
                return image, mask

    def _cut(self, slices: range) -> Pair:
        return self._window(*self._place(slices))

    def _place(self, slices: range, margin: int = 0) -> tuple[int, int, int]:
        height, width = self._images.shape[1:]
        z = int(self._rng.choice(slices))
        y = int(self._rng.integers(margin, height - SIDE - margin + 1))
        return z, y, int(self._rng.integers(margin, width - SIDE - margin + 1))

    def _window(self, z: int, y: int, x: int) -> Pair:
        part = (z, slice(y, y + SIDE), slice(x, x + SIDE))
        return self._images[part], self._masks[part]


def make_samples(
    stack: Stack, each: int, held_out: int, seed: int, reference: range = REFERENCE
) -> dict[str, list[Pair]]:
    """Samples by their kind.

    Args:
        stack: the real slices with masks.
        each: bad samples of each kind.
        held_out: good samples.
        seed: of all choices.
        reference: the slices to compare with.
    """
    samples = Samples(stack, np.random.default_rng(seed), reference)
    kinds: dict[str, tuple[Callable[[], Pair], int]] = {
        "real held-out pair": (samples.held_out, held_out),
        "mask shifted by 24 pixels": (lambda: samples.shifted(24), each),
        "mask shifted by 12 pixels": (lambda: samples.shifted(12), each),
        "mask emptied": (samples.emptied, each),
        "noise image": (samples.noise, each),
        "copy of a real tile": (samples.copied, each),
        "specks in the mask": (samples.specked, each),
    }
    return {name: [make() for _ in range(count)] for name, (make, count) in kinds.items()}


def write_samples(folder: Path, pairs: list[Pair]) -> Path:
    """Write pairs as a set, as if the shipped denoiser had drawn them."""
    info = EngineInfo("onnxruntime-cpu", "fp32", "CPU", "none")
    size = list(pairs[0][0].shape)
    settings = {"count": len(pairs), "seed": 0, "steps": 1, "size": size, "batch": None}
    settings |= {"pairs": False, "sampler": "ddpm", "eta": None}
    record = describe(settings, open_bundle("epfl-denoiser"), info, None)
    lines = []
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for index, (image, mask) in enumerate(pairs):
        files = {}
        for kind, pixels in (("images", image), ("masks", mask * np.uint8(255))):
            data, files[file_name(kind, index)] = png(pixels)
            (folder / file_name(kind, index)).write_bytes(data)
        drawn = {"index": index, "seed": 0, "steps": 1, "sampler": "ddpm", "eta": None}
        drawn |= {"engine": info.engine, "runtime": info.version, "precision": info.precision}
        drawn |= {"device": info.device, "bundle": record["model"]["sha256"]}
        lines.append(line({**drawn, "scores": image_scores(image, mask), "files": files}))
    (folder / "job.json").write_text(json.dumps(record) + "\n")
    publish(folder, record, lines)
    return folder


def write_reference(folder: Path, stack: Stack, slices: range = REFERENCE) -> Path:
    """Write the slices to compare with as a folder of images and masks."""
    for kind, arrays in (("images", stack.images), ("masks", stack.labels() * np.uint8(255))):
        (folder / kind).mkdir(parents=True)
        for index in slices:
            Image.fromarray(arrays[index]).save(folder / kind / f"{stack.names[index]}.png")
    return folder


def rejected(selected: Path, kinds: dict[str, list[Pair]]) -> dict[str, dict[str, Any]]:
    """How many samples of each kind a selection rejected, and how many for which reason."""
    lines = [json.loads(text) for text in (selected / "rejected.jsonl").read_text().splitlines()]
    found = {entry["index"]: entry["reasons"] for entry in lines}
    result: dict[str, dict[str, Any]] = {}
    first = 0
    for name, pairs in kinds.items():
        reasons = [found[i] for i in range(first, first + len(pairs)) if i in found]
        names = sorted({reason for some in reasons for reason in some})
        result[name] = {
            "images": len(pairs),
            "rejected": len(reasons),
            "reasons": {reason: sum(reason in some for some in reasons) for reason in names},
        }
        first += len(pairs)
    return result


def seconds_an_image(
    real: Stack, engine: str, precision: str, threads: int | None
) -> dict[str, float]:
    """What each part of the scoring takes, in seconds an image."""
    images = np.stack([real.images[i, :SIDE, :SIDE] for i in range(TIMED)])
    times = {}
    with (
        FeatureNetwork.open(threads=threads) as network,
        Segmenter.open("epfl-segmenter", engine, precision, threads) as segmenter,
        PlaceSearch(real.images.__getitem__, len(real), SIDE) as search,
    ):

        def segment() -> None:
            for first in range(0, TIMED, 4):
                segmenter.segment(images[first : first + 4])

        parts: dict[str, Callable[[], object]] = {
            "features": lambda: network(images),
            "segmenter": segment,
            "search for copies": lambda: search.find(images),
        }
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            times[name] = (time.perf_counter() - start) / TIMED
    return times


def main() -> None:
    """Plant, select, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the EPFL stack")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--each", type=int, default=100, help="bad samples of each kind")
    parser.add_argument("--held-out", type=int, default=200, help="good samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sets", type=Path, help="folder to keep the samples and scores in")
    arguments = parser.parse_args()
    stack = read_stack(arguments.data)
    kinds = make_samples(stack, arguments.each, arguments.held_out, arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.sets or Path(name)
        planted, reference = folder / "planted", folder / "reference"
        if not planted.exists():
            write_samples(planted, [pair for pairs in kinds.values() for pair in pairs])
            write_reference(reference, stack)
        selection = select_set(
            planted,
            Path(name) / "selected",
            reference,
            Rules(),
            engine=arguments.engine,
            precision=arguments.precision,
            threads=arguments.threads,
            tell=print,
        )
        result = rejected(selection.folder, kinds)
        chosen = json.loads((selection.folder / "selection.json").read_text())
    engine = chosen["segmenter"]
    times = seconds_an_image(
        stack.select(REFERENCE), engine["engine"], engine["precision"], arguments.threads
    )
    facts = {
        "machine": {**machine_facts(), "float32_matmul_gflops": round(matmul_rate() / 1e9, 1)},
        "seconds_an_image": {name: round(value, 4) for name, value in times.items()},
        "seed": arguments.seed,
        **{key: chosen[key] for key in ("rules", "segmenter", "features", "real", "real_tiles")},
        "kinds": result,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(facts, indent=1) + "\n")
    rows = [
        [
            name,
            str(row["images"]),
            f"{100 * row['rejected'] / row['images']:.1f} %",
            ", ".join(f"{reason} {n}" for reason, n in row["reasons"].items()),
        ]
        for name, row in result.items()
    ]
    print(markdown_table(["sample", "images", "rejected", "reasons"], rows))
    print(machine_line(facts))
    print({name: round(value, 3) for name, value in times.items()})


if __name__ == "__main__":
    main()
