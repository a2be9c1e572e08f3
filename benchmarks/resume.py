"""How soon a large set that was killed goes on, and how much memory it takes.

Sets of a thousand and of a hundred thousand images are put together from a few small ones by hard
links, with four images lacking. The real command takes each up again; measured are the time until
the first new image is there, the time from the last one to the end, in which the manifest is merged
and the card and metadata.jsonl are written, and the most memory that the process had.

    python -m benchmarks.resume --out benchmarks/results/resume.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from emfast.benchmark.machine import machine_facts
from tests.sets import fabricate

SIZES = (1000, 100_000)
NEW = 4
COMMAND = (
    *(sys.executable, "-c", "from emfast.cli.main import main; main()", "generate"),
    *("--size", "64", "64", "--steps", "1", "--engine", "onnxruntime-cpu", "--threads", "1"),
)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--runs", type=int, default=3, help="of each size; the median is told")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        subprocess.run([*COMMAND, "--count", "4", "--out", base], check=True)
        for images in SIZES:
            runs = [
                resume(base, Path(name) / f"{images}-{run}", images) for run in range(options.runs)
            ]
            medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            results.append({"images": images, **medians})
            print(json.dumps(results[-1]))
    values = {"machine": machine_facts(), "new_images": NEW, "runs": options.runs, "sets": results}
    options.out.write_text(json.dumps(values, indent=1) + "\n")


def resume(base: Path, folder: Path, images: int) -> dict[str, Any]:
    """Take a fabricated set up again, and measure."""
    fabricate(base, folder, images, images + NEW)
    first, last = (folder / f"images/{i:06d}.png" for i in (images, images + NEW - 1))
    start = time.monotonic()
    process = subprocess.Popen([*COMMAND, "--count", str(images + NEW), "--out", folder])
    began = drawn = 0.0
    while True:
        now = time.monotonic() - start
        began = began or (now if first.exists() else 0.0)
        drawn = drawn or (now if last.exists() else 0.0)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        time.sleep(0.005)
    end = time.monotonic() - start
    if status:
        raise SystemExit(f"{folder}: the command failed")
    shutil.rmtree(folder)
    return {
        "seconds_to_first_image": round(began, 2),
        "seconds_to_merge": round(end - drawn, 2),
        "peak_memory_mib": round(usage.ru_maxrss / 1024, 1),
    }


if __name__ == "__main__":
    main()
