"""``emfast serve`` under load: clients that send one slice after the other, each on its connection.

The server is a process of its own, started for the run. Clients run as threads of this process and
take a share of the same processors. A client that gets 429 comes again after a tenth of a second
instead of the time that Retry-After asks for, so that the server stays full. Health checks go on
all the while. Run it on an idle machine:

    python benchmarks/server_load.py --clients 32 --seconds 60 --out benchmarks/results/server.json
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from emfast.benchmark.machine import machine_facts
from emfast.data.sample import read_sample

CODE = "from emfast.cli.main import main; main()"
STARTED = re.compile(r"serving at (\S+)/\n")
PAUSE = 0.1
# Between samples of the server's memory and health.
INTERVAL = 0.5


@dataclass
class Record:
    """What the clients saw; lists are appended to by several threads.

    Attributes:
        latencies: seconds of each answer 200.
        health: seconds of each health check.
        memory: (seconds since the start, resident bytes of the server).
        outcomes: answers by status, errors by the name of their exception.
    """

    latencies: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, outcome: str) -> None:
        with self.lock:
            self.outcomes[outcome] += 1


@contextmanager
def server(options: list[str]) -> Iterator[tuple[str, int]]:
    """Address and process of a server on a free port; it is stopped by SIGTERM."""
    command = [sys.executable, "-c", CODE, "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = ""
    while not (found := STARTED.search(told)):
        line = process.stderr.readline()
        if not line:
            raise SystemExit(f"the server did not start: {told}")
        told += line
    try:
        yield found[1], process.pid
    finally:
        process.terminate()
        if process.wait(120):
            raise SystemExit(f"the server ended with {process.returncode}")


def client(url: str, body: bytes, until: float, record: Record) -> None:
    """Send a slice again and again."""
    with httpx.Client(timeout=120) as connection:
        while time.perf_counter() < until:
            start = time.perf_counter()
            try:
                answer = connection.post(f"{url}/v1/segment", content=body)
            except httpx.HTTPError as error:
                record.count(type(error).__name__)
                continue
            record.count(str(answer.status_code))
            if answer.status_code == 200:
                record.latencies.append(time.perf_counter() - start)
            elif answer.status_code == 429:
                time.sleep(PAUSE)


def watch(url: str, pid: int, start: float, until: float, record: Record) -> None:
    """Check the server's health and read its memory."""
    status = Path(f"/proc/{pid}/status")
    with httpx.Client(timeout=60) as connection:
        while time.perf_counter() < until:
            began = time.perf_counter()
            record.count(f"healthz {connection.get(f'{url}/healthz').status_code}")
            record.health.append(time.perf_counter() - began)
            line = next(line for line in status.read_text().splitlines() if "VmRSS" in line)
            record.memory.append((began - start, 1024 * int(line.split()[1])))
            time.sleep(INTERVAL)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    if not seconds:
        return {}
    values = np.percentile(seconds, [50, 90, 99, 100])
    names = ("p50_ms", "p90_ms", "p99_ms", "max_ms")
    return {name: round(1e3 * float(value), 1) for name, value in zip(names, values, strict=True)}


def summary(record: Record, elapsed: float, pixels: int) -> dict[str, Any]:
    """What is kept of a run."""
    halves = np.array_split(np.array([size for _, size in record.memory]) / 2**20, 2)
    answered = len(record.latencies)
    return {
        "outcomes": dict(sorted(record.outcomes.items())),
        "answers_per_s": round(answered / elapsed, 2),
        "megapixels_per_s": round(answered * pixels / elapsed / 1e6, 2),
        "latency": percentiles(record.latencies),
        "health": percentiles(record.health),
        "memory_mib": {
            "first_half_max": round(float(halves[0].max()), 1),
            "second_half_max": round(float(halves[1].max()), 1),
            "samples": [[round(at, 1), round(size / 2**20, 1)] for at, size in record.memory],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--size", type=int, nargs=2, default=(768, 1024), help="height and width of the slices"
    )
    parser.add_argument("server", nargs="*", help="options of emfast serve, after --")
    arguments = parser.parse_args()
    height, width = arguments.size
    file = BytesIO()
    Image.fromarray(read_sample().images[0, :height, :width]).save(file, "PNG")
    record = Record()
    with server(arguments.server) as (url, pid):
        model = httpx.get(f"{url}/v1/model").json()
        httpx.post(f"{url}/v1/segment", content=file.getvalue(), timeout=120)  # first of its size
        start = time.perf_counter()
        until = start + arguments.seconds
        threads = [
            threading.Thread(target=client, args=(url, file.getvalue(), until, record))
            for _ in range(arguments.clients)
        ]
        threads.append(threading.Thread(target=watch, args=(url, pid, start, until, record)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - start
    result = {
        "machine": machine_facts(),
        "clients": arguments.clients,
        "seconds": round(elapsed, 1),
        "size": [height, width],
        "server": {"options": arguments.server, **model},
        **summary(record, elapsed, height * width),
    }
    text = json.dumps(result, indent=1) + "\n"
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")
    shown = {key: result[key] for key in result if key not in ("machine", "server")}
    shown["memory_mib"] = {k: v for k, v in result["memory_mib"].items() if k != "samples"}
    print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
