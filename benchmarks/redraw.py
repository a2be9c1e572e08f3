"""On which part of its way a denoiser loses what real tiles have.

Real tiles are noised to a timestep and drawn from there on, with the noise of one seed. What a tile
shows at lower noise is drawn anew, the rest is kept, and a perfect denoiser would draw tiles of the
same distribution (Meng et al., "SDEdit", arXiv 2108.01073, begin so too). Features of tiles that
their network was trained on answer to details that no new image has, so that tiles of slices which
it saw and did not see are told apart:

    python benchmarks/redraw.py --data epfl --out redraw.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emfast.benchmark.machine import machine_facts, matmul_rate
from emfast.benchmark.table import machine_line, markdown_table
from emfast.channels import decode, encode
from emfast.diffusion.noise import normal_noise
from emfast.diffusion.samplers import Trajectory
from emfast.diffusion.spec import DenoiserSpec
from emfast.quality.feature_distance import frechet_distance
from emfast.quality.features import FeatureNetwork
from emfast.quality.sets import open_labelled, read_real
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.reuse import DividedDenoiser, FeatureReuse

SIZE = 256
BATCH = 8
REAL_TILES = 2000
# The feature network was trained on the slices before, and leaves a gap to those that it has not
# seen (emfast/quality/encoder/manifest.json).
SEEN = 135
GAP = 5
TIMESTEPS = (12, 35, 70, 130, 450, 620)
# As the sets of the cards are drawn.
PRECISION = "int8"
REUSE = 3

Uint8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """Tiles that were drawn from one timestep, beside the tiles that they were.

    Attributes:
        slices: "seen" or "unseen" by the feature network.
        timestep: from which they were drawn.
        frechet: Fréchet distance between them.
        shift: along the first principal direction of all real features.
        slope: of their features on those of the real ones along the first two directions.
        area, area_real: mean share of mitochondria.
        area_correlation: of the shares of both.
    """

    slices: str
    timestep: int
    frechet: float
    shift: float
    slope: tuple[float, float]
    area: float
    area_real: float
    area_correlation: float


def redraw(
    spec: DenoiserSpec, denoiser: DividedDenoiser, images: Uint8, masks: Uint8, timestep: int
) -> tuple[Uint8, Uint8]:
    """Noise tiles to a timestep and draw them from there, with the noise of seed 0."""
    sampler = spec.sampler()
    signal = spec.schedule.alphas_cumprod[timestep]
    drawn = []
    for first in range(0, len(images), BATCH):
        part = slice(first, first + BATCH)
        clean = encode(spec.channels, images[part], masks[part])
        indices = range(first, first + len(clean))
        shape = clean.shape[1:]
        x = np.sqrt(signal) * clean
        x += np.sqrt(1 - signal) * normal_noise(0, indices, spec.schedule.steps, shape)
        x = x.astype(np.float32)
        network = FeatureReuse(denoiser, REUSE)
        trajectory = Trajectory(sampler, x.shape)
        for step in sampler.steps:
            if step.timestep > timestep:
                continue
            times = np.full(len(x), step.timestep, dtype=np.float32)
            prediction = network.run({"x": x, "timestep": times})["prediction"]
            noise = normal_noise(0, indices, step.timestep, shape)
            trajectory.step(step, x, prediction.astype(np.float32, copy=False), noise)
        drawn.append(x)
    return decode(spec.channels, np.concatenate(drawn))


def slope(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> float:
    """Of the line that fits y on x best."""
    return float(np.polyfit(x, y, 1)[0])


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    with open_labelled(arguments.data) as stack:
        tiles = read_real(stack, SIZE, REAL_TILES, seed=0).tiles
    slices = np.array([origin.slice for origin in tiles.origins])
    masks = tiles.stack().labels()
    rng = np.random.default_rng(0)
    with (
        FeatureNetwork.open() as features,
        Generator.open(arguments.model, "openvino", PRECISION, batch=BATCH) as generator,
        closing(DividedDenoiser(generator.engine)) as denoiser,
    ):
        real = features(tiles.images)
        mean = real.mean(axis=0)
        directions = np.linalg.eigh(np.cov(real.T))[1][:, :-3:-1]
        area = (masks > 0).mean(axis=(1, 2))
        along = np.corrcoef((real - mean) @ directions[:, 0], area)[0, 1]
        print(f"correlation of area and first direction: {abs(along):.2f}", flush=True)
        # Tiles with more mitochondria are on its negative side.
        directions[:, 0] *= -np.sign(along)
        for name, pool in (("seen", slices < SEEN), ("unseen", slices >= SEEN + GAP)):
            places = np.flatnonzero(pool)
            chosen = rng.choice(places, min(arguments.count, len(places)), replace=False)
            before = (real[chosen] - mean) @ directions
            for timestep in arguments.timesteps:
                images, labels = redraw(
                    generator.spec, denoiser, tiles.images[chosen], masks[chosen], timestep
                )
                found = features(images)
                after = (found - mean) @ directions
                share = (labels > 0).mean(axis=(1, 2))
                yield Row(
                    name,
                    timestep,
                    frechet_distance(found, real[chosen]),
                    float((after - before)[:, 0].mean()),
                    (slope(before[:, 0], after[:, 0]), slope(before[:, 1], after[:, 1])),
                    float(share.mean()),
                    float(area[chosen].mean()),
                    float(np.corrcoef(share, area[chosen])[0, 1]),
                )


def table(rows: list[Row]) -> str:
    columns = [
        "slices",
        "drawn from",
        "Fréchet distance",
        "shift",
        "slopes",
        "area",
        "of the real",
        "correlation",
    ]
    body = [
        [
            row.slices,
            str(row.timestep),
            f"{row.frechet:.3g}",
            f"{row.shift:+.3f}",
            ", ".join(f"{value:.2f}" for value in row.slope),
            f"{100 * row.area:.2f} %",
            f"{100 * row.area_real:.2f} %",
            f"{row.area_correlation:.2f}",
        ]
        for row in rows
    ]
    return markdown_table(columns, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="real slices with masks")
    parser.add_argument("--model", default="epfl-denoiser")
    parser.add_argument("--count", type=int, default=96, help="tiles of either kind of slices")
    parser.add_argument("--timesteps", type=int, nargs="+", default=TIMESTEPS)
    parser.add_argument("--out", type=Path, help="JSON of the table")
    arguments = parser.parse_args()
    rows = []
    for row in measure(arguments):
        rows.append(row)
        print(f"{row.slices} slices, from {row.timestep}: done", flush=True)
    report: dict[str, Any] = {
        "machine": machine_facts() | {"float32_matmul_gflops": round(matmul_rate() / 1e9, 1)},
        "settings": {
            "model": arguments.model,
            "count": arguments.count,
            "precision": PRECISION,
            "reuse": REUSE,
        },
    }
    print(f"{machine_line(report)}\n\n{table(rows)}")
    if arguments.out:
        report["rows"] = [asdict(row) for row in rows]
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
