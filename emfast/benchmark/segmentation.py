"""``emfast benchmark segmentation``: milliseconds a slice, slices a second and memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tifffile

from emfast.benchmark.machine import convolution_flops, machine_facts, matmul_rate
from emfast.benchmark.segmentation_runs import StackResult, in_turn, stack_size, whole_stack
from emfast.benchmark.segmentation_table import markdown, plot
from emfast.benchmark.segmenters import PEERS, WINDOW, Case
from emfast.benchmark.worker import Entry, Round
from emfast.data.sample import read_sample
from engines.bundle import open_bundle
from engines.errors import UserError
from engines.files import atomic_write
from engines.plan import Profile

SEGMENTERS = "emfast.benchmark.segmenters"
PEER_LABELS = {
    "monai": "MONAI sliding window, PyTorch",
    "eager": "PyTorch, eager",
    "compile": "PyTorch, torch.compile",
}


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        sizes: height and width of the slices.
        batches: slices that run together, engine only.
        rounds: that are counted; one more warms up.
        seconds: of each case in a round, at least; one run if that takes longer.
        stack: a TIFF that is segmented whole, once; or None.
    """

    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    rounds: int
    seconds: float
    stack: Path | None = None


@dataclass(frozen=True)
class Result:
    """What one contestant took at one size and batch.

    Attributes:
        label, description: who it was.
        kind: "engine" or "files", as for :class:`~emfast.benchmark.segmenters.Case`.
        height, width: of a slice, in pixels.
        batch: slices that ran together.
        runs: that were measured, all rounds together.
        p50_ms, p90_ms, p99_ms: percentiles of a run, all its slices together, in milliseconds.
        slices_per_second: from the median run.
        matmul_share: network operations a second as a share of the machine's measured float32
            matrix product, in [0, 1] or above for fewer bits; None if unknown, and for MONAI, whose
            windows overlap.
    """

    label: str
    description: str
    kind: str
    height: int
    width: int
    batch: int
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    slices_per_second: float
    matmul_share: float | None


def emfast_entries(
    model: str, engines: Sequence[tuple[str, str]], threads: int | None, size: tuple[int, int]
) -> list[Entry]:
    """emfast on pairs of engine and precision; arguments as for
    :class:`~emfast.benchmark.segmenters.EmfastSegmentation`."""
    entries = []
    for engine, precision in engines:
        arguments = {
            "model": model,
            "engine": engine,
            "precision": precision,
            "threads": threads,
            "size": size,
        }
        label = f"emfast, {engine}, {precision}"
        entries.append(Entry(label, f"{SEGMENTERS}:EmfastSegmentation", arguments))
        if engine == "onnxruntime-cuda":
            # TensorRT replays CUDA graphs by itself.
            bound = {**arguments, "bound": True}
            entries.append(Entry(f"{label}, CUDA graph", f"{SEGMENTERS}:EmfastSegmentation", bound))
    return entries


def peer_entries(model: str, threads: int | None, peers: Sequence[str] = PEERS) -> list[Entry]:
    """The same network on PyTorch and MONAI."""
    return [
        Entry(
            PEER_LABELS[peer],
            f"{SEGMENTERS}:TorchSegmentation",
            {"peer": peer, "model": model, "threads": threads},
        )
        for peer in peers
    ]


def benchmark_segmentation(
    entries: Sequence[Entry], settings: Settings, model: str, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Run contestants in turn, round after round, then each on the whole stack.

    Each has a process of its own, and another one for the stack, which ends before the next begins,
    so that its peak memory is that of the stack alone. The first round warms up and is not counted.

    Args:
        entries: who takes part; one that cannot run here, or fails, is told and left out.
        settings: what is measured.
        model: the segmenter's bundle, whose operations are counted.
        tell: prints a line.

    Returns:
        JSON-ready: "machine", "settings", "results", "stack" and "left_out".

    Raises:
        UserError: settings that cannot be measured, an unreadable stack, or none can run here.
    """
    started = time.time()
    flops = _pixel_flops(model)
    _check(settings, open_bundle(model, "segmenter").manifest.multiple)
    size = None if settings.stack is None else stack_size(settings.stack)
    machine = machine_facts()
    rate = matmul_rate()
    left_out: dict[str, str] = {}
    with TemporaryDirectory(prefix="emfast-") as folder:
        cases = _cases(settings, Path(folder))
        measured = in_turn(entries, cases, settings.rounds, left_out, tell)
    if not measured:
        raise UserError(f"nothing to measure: {'; '.join(left_out.values())}")
    results = [
        summarise(entry.label, description, case, rounds, flops, rate)
        for case in cases
        for entry in entries
        for description, rounds in [measured.get((entry.label, case), ("", []))]
        if rounds
    ]
    stack: list[StackResult] = []
    if settings.stack is not None and size is not None:
        still_in = [entry for entry in entries if entry.label not in left_out]
        stack = whole_stack(still_in, settings.stack, size, left_out, tell)
    return {
        "machine": {**machine, "float32_matmul_gflops": round(rate / 1e9, 1)},
        "settings": {
            "sizes": [f"{width}x{height}" for height, width in settings.sizes],
            "batches": list(settings.batches),
            "rounds": settings.rounds,
            "seconds_of_a_case": settings.seconds,
            "stack": None if settings.stack is None else settings.stack.name,
            "monai": WINDOW,
            "network_flop_a_pixel": None if flops is None else round(flops),
            "seconds": round(time.time() - started, 1),
        },
        "results": [asdict(result) for result in results],
        "stack": [asdict(result) for result in stack],
        "left_out": left_out,
    }


def summarise(
    label: str,
    description: str,
    case: Case,
    rounds: Sequence[Round],
    flops: float | None,
    rate: float,
) -> Result:
    """Percentiles and rates of a contestant's rounds.

    Args:
        label, description: who it was.
        case: what was run.
        rounds: at least one, of at least one run each.
        flops: of the network for one pixel; None if unknown.
        rate: of the machine's matrix product, operations a second.
    """
    steps = np.concatenate([one.steps for one in rounds])
    p50, p90, p99 = (float(value) for value in np.percentile(steps, [50, 90, 99]))
    height, width = case.size
    share = None
    if flops is not None and case.kind == "engine" and label != PEER_LABELS["monai"]:
        share = flops * height * width * case.batch / p50 / rate
    return Result(
        label=label,
        description=description,
        kind=case.kind,
        height=height,
        width=width,
        batch=case.batch,
        runs=len(steps),
        p50_ms=1e3 * p50,
        p90_ms=1e3 * p90,
        p99_ms=1e3 * p99,
        slices_per_second=case.batch / p50,
        matmul_share=share,
    )


def _check(settings: Settings, multiple: int) -> None:
    if settings.rounds < 1 or settings.seconds < 0 or min(settings.batches, default=0) < 1:
        raise UserError(
            f"{settings.rounds} rounds of {settings.seconds:g} s, batches {settings.batches}; "
            "give rounds and batches from 1, and 0 or more seconds"
        )
    for height, width in settings.sizes:
        if height % multiple or width % multiple:
            raise UserError(
                f"size {width}x{height}: this network takes multiples of {multiple} pixels"
            )


def _cases(settings: Settings, folder: Path) -> list[Case]:
    """Every size engine only in every batch, and one TIFF of it end to end."""
    cases = []
    for size in settings.sizes:
        cases += [Case("engine", size, batch, settings.seconds) for batch in settings.batches]
        file = folder / f"{size[1]}x{size[0]}.tif"
        tifffile.imwrite(file, _real_slice(size), photometric="minisblack")
        cases.append(Case("files", size, 1, settings.seconds, file))
    return cases


def _real_slice(size: tuple[int, int]) -> Any:
    """The sample slice, repeated by mirroring or cut to a size; uint8 (height, width)."""
    image = read_sample().images[0]
    more = [(0, max(wanted - has, 0)) for wanted, has in zip(size, image.shape, strict=True)]
    return np.pad(image, more, mode="symmetric")[: size[0], : size[1]]


def _pixel_flops(model: str) -> float | None:
    """Operations for a pixel, where the onnx package is there to count them."""
    bundle = open_bundle(model, "segmenter")
    readable_graphs = [p for p in ("fp32", "fp16") if p in bundle.precisions]
    if not readable_graphs:
        return None
    height, width = (4 * bundle.manifest.multiple for _ in range(2))
    profile = Profile.fixed(1, height, width)
    shapes = {spec.name: profile.shapes(spec)[1] for spec in bundle.manifest.inputs}
    try:
        flops = convolution_flops(bundle.graph(readable_graphs[0]), shapes)
    except ModuleNotFoundError:
        return None
    return flops / (height * width)


def write_report(report: dict[str, Any], out: Path) -> None:
    """Write segmentation.json, segmentation.md and segmentation.png into a folder.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror})") from None
    with atomic_write(out / "segmentation.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    with atomic_write(out / "segmentation.md") as temporary:
        temporary.write_text(markdown(report))
    plot(report, out / "segmentation.png")
