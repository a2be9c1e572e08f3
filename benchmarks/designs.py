"""Designs of the denoiser compared by short trainings: the score of what each draws, and its cost.

Every design is the preset `default` with something changed, trained for the same number of
iterations on slices 0 to 134; all draw the same number of images of one seed. Scores are those of
``emfast report``, beside the same real tiles. Designs that the file of results holds are not made
again, and killed, it goes on where it was:

    python -m benchmarks.designs --data epfl --runs designs --out benchmarks/results/designs.json
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.steps import BATCH, REAL_TILES, SHOWN, SIZE, score
from emfast.benchmark.machine import machine_facts, matmul_rate
from emfast.benchmark.table import machine_line, markdown_table
from emfast.data.stack import Stack, read_stack
from emfast.exports import export_checkpoint
from emfast.models.denoiser import Denoiser, DenoiserConfig
from emfast.quality.draws import Row, Value
from emfast.quality.scores import SCORES
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Job, run_job
from emfast.training.denoiser import train_denoiser
from emfast.training.presets import DENOISER_PRESETS
from engines.bundle import open_bundle
from export.bundle import export_bundle

SLICES = range(135)
PATCH_4 = {"patch": 4, "widths": (64, 128, 192), "blocks": 2}
# What each changes of the preset. Networks cost about what the preset's does, unless they say so.
DESIGNS: dict[str, dict[str, Any]] = {
    "default": {},
    "patch 4": PATCH_4,
    "patch 4, noise, linear schedule": {**PATCH_4, "schedule": "linear", "prediction": "epsilon"},
    "four levels": {"widths": (24, 56, 112, 176), "blocks": 2},
    "three levels": {"widths": (28, 64, 120), "blocks": 2},
    "1 block": {"widths": (32, 72, 152, 232), "blocks": 1},
    "3 blocks": {"widths": (20, 48, 88, 144), "blocks": 3},
    "narrow": {"widths": (16, 40, 80, 128), "blocks": 2},
    "linear schedule": {"schedule": "linear"},
    "noise, linear schedule": {"schedule": "linear", "prediction": "epsilon"},
    "all flips and turns": {"symmetries": tuple(range(8))},
    "no flips and turns": {"symmetries": (0,)},
    "large crops only": {"crops": ((256, 4),)},
    "uniform timesteps": {"skew": (1.0, 1.0)},
    "errors of pixels alone": {"coarse": 0.0},
    "masks weigh as images": {"mask_weight": 1.0},
    "no average of weights": {"ema": 0.0},
}
EXPORT_STEPS = 20


def gflop(config: DenoiserConfig) -> float:
    """Of one evaluation of a 256 x 256 image, in 10^9 operations."""
    height, width = SIZE
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Denoiser(config)(torch.zeros(1, config.in_channels, height, width), torch.zeros(1))
    return float(counter.get_total_flops()) / 1e9


def make(
    name: str, stack: Stack, folder: Path, arguments: argparse.Namespace
) -> tuple[Path, dict[str, Any]]:
    """Train a design and draw its set; returns the set's folder and what the design costs."""
    settings = DENOISER_PRESETS["default"].override(
        iterations=arguments.iterations, sample_every=arguments.iterations, **DESIGNS[name]
    )
    data = {"slices": list(stack.names)}
    trainer = train_denoiser(settings, stack, data, folder / "run", arguments.device)
    bundle, drawn = folder / "bundle", folder / "set"
    if not bundle.exists():
        export_bundle(
            export_checkpoint(folder / "run", name, stack, {}, EXPORT_STEPS), bundle, ("fp32",)
        )
    with Generator.open(bundle, "auto", "fp32", arguments.threads, BATCH, SIZE) as generator:
        job = Job(arguments.count, 0, arguments.steps, SIZE, BATCH, False, arguments.sampler)
        start = time.monotonic()
        result = run_job(job, generator, drawn)
        seconds = (time.monotonic() - start) / max(result.drawn, 1)
        engine = generator.engine.info
    config = DenoiserConfig(
        widths=settings.widths, blocks=settings.blocks, patch=settings.patch, steps=settings.steps
    )
    facts: dict[str, Any] = {
        "changes": DESIGNS[name],
        "gflop": round(gflop(config), 2),
        "parameters": sum(p.numel() for p in Denoiser(config).parameters()),
        "training_seconds": round(trainer.seconds, 1),
        "trained_on": trainer.hardware(),
        "engine": str(engine),
        "bundle": open_bundle(bundle).sha256,
    }
    if result.drawn == arguments.count:
        facts["ms_a_step"] = round(1e3 * seconds / arguments.steps, 1)
    return drawn, facts


def text(score: str, value: dict[str, float] | None) -> str:
    """A value of the file of results as the report writes it."""
    return SCORES[score].text(None if value is None else Value(**value))


def table(designs: dict[str, Any]) -> str:
    """The designs' scores as Markdown, one line a design and one of real tiles."""
    columns = ["design", "GFLOP", "parameters", *(SCORES[key].title for key in SHOWN)]
    body = [
        [
            name,
            f"{found['gflop']:.1f}",
            f"{found['parameters'] / 1e6:.1f} M",
            *(text(key, found["scores"][key]["synthetic"]) for key in SHOWN),
        ]
        for name, found in designs.items()
    ]
    first = next(iter(designs.values()))["scores"]
    body.append(["real tiles", "", "", *(text(key, first[key]["real"]) for key in SHOWN)])
    return markdown_table(columns, body)


def as_values(rows: dict[str, Row]) -> dict[str, dict[str, Any]]:
    """Rows as the file of results holds them, without the stack's halves."""
    return {
        key: {side: asdict(row)[side] for side in ("synthetic", "real")}
        for key, row in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="real slices with masks")
    parser.add_argument("--runs", type=Path, required=True, help="folder for trainings and sets")
    parser.add_argument("--out", type=Path, required=True, help="JSON with every score, added to")
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), choices=list(DESIGNS))
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--count", type=int, default=64, help="images a set")
    parser.add_argument("--sampler", default="dpm++")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    settings = {
        "iterations": arguments.iterations,
        "count": arguments.count,
        "sampler": arguments.sampler,
        "steps": arguments.steps,
        "real_tiles": REAL_TILES,
    }
    report: dict[str, Any] = {"settings": settings, "designs": {}}
    if arguments.out.exists():
        report = json.loads(arguments.out.read_text())
        if report["settings"] != settings:
            parser.error(
                f"{arguments.out}: was made with {report['settings']} instead of {settings}; give "
                "these or another --out"
            )
    stack = read_stack(arguments.data).select(SLICES)
    for name in arguments.designs:
        if name in report["designs"]:
            continue
        print(f"{name}: {DESIGNS[name] or 'the preset'}", flush=True)
        drawn, facts = make(name, stack, arguments.runs / name.replace(" ", "-"), arguments)
        rows = score(arguments.data, {name: drawn}, arguments.count)[name]
        report["designs"][name] = facts | {"scores": as_values(rows)}
        report["machine"] = machine_facts() | {
            "float32_matmul_gflops": round(matmul_rate() / 1e9, 1)
        }
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{machine_line(report)}\n\n{table(report['designs'])}")


if __name__ == "__main__":
    main()
