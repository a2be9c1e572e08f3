"""``emfast benchmark sampling``: milliseconds a step and images a second, beside the peers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emfast.benchmark.contestants import SIZE, STEPS
from emfast.benchmark.machine import convolution_flops, machine_facts, matmul_rate
from emfast.benchmark.table import markdown, plot
from emfast.benchmark.worker import Entry, Round, Worker
from emfast.progress import progress
from engines.bundle import open_bundle
from engines.errors import UserError
from engines.files import atomic_write
from engines.plan import Profile

CONTESTANTS = "emfast.benchmark.contestants"
# Steps of the warm-up and of every round: a peer's network may take seconds a step.
PEER_STEPS = 3


@dataclass(frozen=True)
class SamplingEntry(Entry):
    """One line of the benchmark.

    Attributes:
        steps: of a round.
    """

    steps: int


@dataclass(frozen=True)
class Result:
    """What one contestant took.

    Attributes:
        label, description: who it was.
        batch: images that were drawn together.
        steps: that were measured, all rounds together.
        step_ms: median milliseconds of a step of the whole batch.
        p90_ms, p99_ms: percentiles of it.
        images_per_second: at 700 steps, from the median step: batch / (700 step).
        outside: share of the time that passed outside the network, in [0, 1]; None if unknown.
        matmul_share: network operations a second as a share of the machine's measured float32
            matrix product, in [0, 1] or above for fewer bits; None if unknown.
        peak_memory: of the process, in bytes.
    """

    label: str
    description: str
    batch: int
    steps: int
    step_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    outside: float | None
    matmul_share: float | None
    peak_memory: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def emfast_entries(
    model: str,
    engines: Sequence[tuple[str, str]],
    threads: int | None,
    batch: int,
    steps: int,
) -> list[SamplingEntry]:
    """emfast on engines of this machine.

    Args:
        model: a shipped denoiser's name, or a bundle's folder.
        engines: pairs of engine and precision, as ``emfast generate`` takes them.
        threads: of the CPU; all processors by default.
        batch: images that are drawn together.
        steps: of a round.
    """
    return [
        SamplingEntry(
            f"emfast, {engine}, {precision}",
            f"{CONTESTANTS}:EmfastSampling",
            {
                "model": model,
                "engine": engine,
                "precision": precision,
                "threads": threads,
                "batch": batch,
            },
            steps,
        )
        for engine, precision in engines
    ]


def peer_entries(threads: int | None, batch: int) -> list[SamplingEntry]:
    """diffusers with the seed's network, one image at a time, and with ours in two forms."""
    ours = (
        ("diffusers, emfast's network", "trained"),
        ("diffusers, emfast's network as exported", "folded"),
    )
    return [
        SamplingEntry(
            "diffusers, the seed's network",
            f"{CONTESTANTS}:DiffusersSampling",
            {"network": "seed", "threads": threads, "batch": 1},
            PEER_STEPS,
        ),
        *(
            SamplingEntry(
                label,
                f"{CONTESTANTS}:DiffusersSampling",
                {"network": network, "threads": threads, "batch": batch},
                2 * PEER_STEPS,
            )
            for label, network in ours
        ),
    ]


def benchmark_sampling(
    entries: Sequence[SamplingEntry],
    rounds: int,
    model: str,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Run contestants in turn, round after round, each in a process of its own.

    The first round warms up and is not counted.

    Args:
        entries: who takes part; one that cannot run here is told and left out.
        rounds: that are counted.
        model: the denoiser's bundle, whose operations are counted.
        tell: prints a line.

    Returns:
        JSON-ready: "machine", "settings", "results" in the order of ``entries``, and "left_out".

    Raises:
        UserError: none can run here.
    """
    started = time.time()
    machine = machine_facts()
    rate = matmul_rate()
    flops = _step_flops(model)
    workers: list[tuple[SamplingEntry, Worker]] = []
    left_out = {}
    for entry in entries:
        try:
            workers.append((entry, Worker(entry.label, entry.factory, entry.arguments)))
        except UserError as error:
            tell(f"left out: {error}")
            left_out[entry.label] = str(error)
    if not workers:
        raise UserError(f"nothing to measure: {'; '.join(left_out.values())}")
    measured: dict[str, list[Round]] = {entry.label: [] for entry, _ in workers}
    with progress("rounds", (rounds + 1) * len(workers)) as advance:
        for number in range(rounds + 1):
            for entry, worker in workers:
                result = worker.run(entry.steps)
                if number:
                    measured[entry.label].append(result)
                advance(1, entry.label)
    results = [
        summarise(
            worker,
            entry.arguments["batch"],
            measured[entry.label],
            worker.close(),
            flops if entry.arguments.get("network") != "seed" else None,
            rate,
        )
        for entry, worker in workers
    ]
    return {
        "machine": {**machine, "float32_matmul_gflops": round(rate / 1e9, 1)},
        "settings": {
            "size": list(SIZE),
            "rounds": rounds,
            "steps_of_a_round": {entry.label: entry.steps for entry, _ in workers},
            "network_gflop_a_step": None if flops is None else round(flops / 1e9, 2),
            "extrapolated": f"images a second at {STEPS} steps, from the median step",
            "seconds": round(time.time() - started, 1),
        },
        "results": [result.to_dict() for result in results],
        "left_out": left_out,
    }


def summarise(
    worker: Worker, batch: int, rounds: Sequence[Round], peak: int, flops: int | None, rate: float
) -> Result:
    """Percentiles and rates of a contestant's rounds.

    The first step of a round is left out: it makes the first noise and fills caches.

    Args:
        worker: who it was.
        batch: images that were drawn together.
        rounds: at least one, of at least two steps each.
        peak: memory of the process, in bytes.
        flops: of the network for one image and step; None if unknown.
        rate: of the machine's matrix product, operations a second.
    """
    steps = np.concatenate([one.steps[1:] for one in rounds])
    p50, p90, p99 = np.percentile(steps, [50, 90, 99])
    inside = [one.inside / sum(one.steps) for one in rounds if one.inside is not None]
    return Result(
        label=worker.label,
        description=worker.description,
        batch=batch,
        steps=len(steps),
        step_ms=1e3 * float(p50),
        p90_ms=1e3 * float(p90),
        p99_ms=1e3 * float(p99),
        images_per_second=batch / (STEPS * float(p50)),
        outside=1 - float(np.median(inside)) if inside else None,
        matmul_share=None if flops is None else flops * batch / float(p50) / rate,
        peak_memory=peak,
    )


def _step_flops(model: str) -> int | None:
    """Operations of one image and step, where the onnx package is there to count them."""
    bundle = open_bundle(model, "denoiser")
    profile = Profile.fixed(1, *SIZE)
    shapes = {spec.name: profile.shapes(spec)[1] for spec in bundle.manifest.inputs}
    try:
        return convolution_flops(bundle.graph(bundle.precisions[0]), shapes)
    except ModuleNotFoundError:
        return None


def write_report(report: dict[str, Any], out: Path) -> None:
    """Write sampling.json, sampling.md and sampling.png into a folder.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror})") from None
    with atomic_write(out / "sampling.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    with atomic_write(out / "sampling.md") as temporary:
        temporary.write_text(markdown(report))
    plot(report, out / "sampling.png")
