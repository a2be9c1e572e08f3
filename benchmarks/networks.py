"""What one evaluation of each shipped network costs: onnxruntime against PyTorch, in one run.

The denoiser is evaluated at 256 x 256 (one of its 700 steps), the segmenter on the sample slice
of 1024 x 768. PyTorch runs the same architecture in eager mode with channels-last memory, as its
CPU guide advises; weights do not matter for time. Engines take turns, so that a change of the
machine's speed meets all of them. Run it on an idle machine:

    python benchmarks/networks.py --out benchmarks/results/networks.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emfast.models.denoiser import Denoiser
from emfast.models.folded import FoldedDenoiser
from emfast.models.unet import UNet
from engines.bundle import open_bundle
from engines.engine import Engine
from engines.onnxruntime import cpu_count
from engines.selection import open_engine
from engines.torch import TorchEngine

WARM_UP = 3


def engines(name: str, network: torch.nn.Module, threads: int) -> dict[str, Engine]:
    """The engines to compare, by a label."""
    bundle = open_bundle(name)
    inputs = [spec.name for spec in bundle.manifest.inputs]
    outputs = [spec.name for spec in bundle.manifest.outputs]
    module = network.to(memory_format=torch.channels_last)
    return {
        "onnxruntime fp32": open_engine(bundle, "onnxruntime-cpu", "fp32", threads).engine,
        "torch eager fp32": TorchEngine(module, inputs, outputs),
    }


def measure(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each call, taken in turn."""
    times: dict[str, list[float]] = {label: [] for label in calls}
    for run in range(WARM_UP + runs):
        for label, call in calls.items():
            start = time.perf_counter()
            call()
            if run >= WARM_UP:
                times[label].append(1e3 * (time.perf_counter() - start))
    result = {}
    for label, values in times.items():
        p50, p90 = np.percentile(values, [50, 90])
        result[label] = {"p50_ms": round(p50, 1), "p90_ms": round(p90, 1)}
    reference = result["torch eager fp32"]["p50_ms"]
    for values_of in result.values():
        values_of["speed_up"] = round(reference / values_of["p50_ms"], 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args()
    threads = cpu_count()
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    cases = {
        f"denoiser, 256 x 256, batch {batch}": (
            engines("epfl-denoiser", FoldedDenoiser(Denoiser()), threads),
            {
                "x": rng.standard_normal((batch, 2, 256, 256), dtype=np.float32),
                "timestep": np.full(batch, 350, np.float32),
            },
        )
        for batch in (1, 4)
    }
    cases["segmenter, 1024 x 768, batch 1"] = (
        engines("epfl-segmenter", UNet(), threads),
        {"x": rng.standard_normal((1, 1, 768, 1024), dtype=np.float32)},
    )
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {threads} CPU threads",
        "python": platform.python_version(),
        "runs": arguments.runs,
        "cases": {},
    }
    for case, (compared, inputs) in cases.items():
        report["versions"] = sorted({engine.info.version for engine in compared.values()})
        calls = {label: lambda e=engine, i=inputs: e.run(i) for label, engine in compared.items()}
        report["cases"][case] = measure(calls, arguments.runs)
    print(json.dumps(report, indent=1))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
