"""What fewer sampling steps cost in quality: the scores of sets that each sampler draws.

Every set has the same seed, so that images differ by sampler, steps and precision alone. Scores are
those of ``emfast report``, with the same real tiles for all sets. Killed, it goes on where it was:

    python benchmarks/steps.py --data epfl --sets sets --out benchmarks/results/steps.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from emfast.benchmark.machine import machine_facts, matmul_rate
from emfast.benchmark.table import machine_line, markdown_table
from emfast.quality.draws import Row, draw_parts, score_rows
from emfast.quality.features import FeatureNetwork
from emfast.quality.measures import measure
from emfast.quality.scores import SCORES
from emfast.quality.sets import open_labelled, read_even, read_real
from emfast.segmentation.segmenter import Segmenter
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Job, run_job

SIZE = (256, 256)
BATCH = 4
# Sampler, steps, steps for which deep features are kept, and precision of each set. Those in FP32
# show what the precision changes.
SETS = (
    ("ddpm", 700, 1, "int8"),
    ("ddpm", 700, 3, "int8"),
    *((sampler, steps, 1, "int8") for sampler in ("ddim", "dpm++") for steps in (100, 50, 20, 10)),
    ("dpm++", 20, 1, "fp32"),
    ("ddpm", 700, 1, "fp32"),
)
REAL_TILES = 400
SHOWN = (
    "frechet",
    "kernel",
    "coverage",
    "spectrum",
    "patterns_1",
    "grey",
    "area_fraction",
    "specks",
    "dice",
)


def draw(folder: Path, model: str, count: int, threads: int | None) -> dict[str, Path]:
    """Draw what is missing of the sets; returns their folders by name."""
    folders = {}
    for sampler, steps, reuse, precision in SETS:
        kept = f"-reuse-{reuse}" if reuse > 1 else ""
        name = f"{sampler.replace('+', 'p')}-{steps}{kept}-{precision}"
        folders[name] = folder / name
        with Generator.open(model, "auto", precision, threads, BATCH, SIZE) as generator:
            print(f"{name}: {generator.engine.info}", flush=True)
            job = Job(count, 0, steps, SIZE, BATCH, False, sampler, reuse=reuse)
            run_job(job, generator, folders[name])
    return folders


def score(data: Path, folders: dict[str, Path], count: int) -> dict[str, dict[str, Row]]:
    """Every score of every set, all beside the same real tiles."""
    with (
        FeatureNetwork.open() as network,
        Segmenter.open("epfl-segmenter", "onnxruntime-cpu", "fp32") as segmenter,
    ):
        with open_labelled(data) as slices:
            real = read_real(slices, SIZE[0], REAL_TILES, seed=0)
        tiles = real.tiles
        masks = tiles.stack().labels()
        measured = tuple(measure(tiles.images, masks, network, segmenter, "measuring real tiles"))
        draws = draw_parts(tiles, count, np.random.default_rng([0, 1]))
        rows = {}
        for name, folder in folders.items():
            with open_labelled(folder) as drawn:
                part = read_even(drawn, count)
            found = measure(part.images, part.stack().labels(), network, segmenter, name)
            rows[name] = score_rows(tuple(found), measured, real, draws)
    return rows


def table(report: dict[str, Any], rows: dict[str, dict[str, Row]]) -> str:
    """The scores as Markdown, one line a set and one of real tiles."""
    columns = ["set", *(SCORES[name].title for name in SHOWN)]
    body = [
        [name, *(SCORES[score].text(row[score].synthetic) for score in SHOWN)]
        for name, row in rows.items()
    ]
    first = next(iter(rows.values()))
    body.append(["real tiles", *(SCORES[score].text(first[score].real) for score in SHOWN)])
    return f"{machine_line(report)}\n\n{markdown_table(columns, body)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="real slices with masks")
    parser.add_argument("--sets", type=Path, required=True, help="folder for the drawn sets")
    parser.add_argument("--model", default="epfl-denoiser")
    parser.add_argument("--count", type=int, default=64, help="images a set")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="JSON with every score")
    arguments = parser.parse_args()
    folders = draw(arguments.sets, arguments.model, arguments.count, arguments.threads)
    rows = score(arguments.data, folders, arguments.count)
    report: dict[str, Any] = {
        "machine": machine_facts() | {"float32_matmul_gflops": round(matmul_rate() / 1e9, 1)},
        "settings": {"model": arguments.model, "count": arguments.count, "real_tiles": REAL_TILES},
        "engines": {
            name: json.loads((folder / "manifest.jsonl").read_text().splitlines()[0])["engine"]
            for name, folder in folders.items()
        },
        "sets": {
            name: {score: asdict(row) for score, row in scores.items()}
            for name, scores in rows.items()
        },
    }
    print(table(report, rows))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
