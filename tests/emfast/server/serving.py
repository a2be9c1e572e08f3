"""A real server in a process of its own, and the requests that tests send to it."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
from PIL import Image

from emfast.data.sample import read_sample

Uint8 = npt.NDArray[np.uint8]
# Column of the sample slice where mitochondria begin.
LEFT = 256
CODE = "from emfast.cli.main import main; main()"
# Results of this engine are the same to the bit for every batch.
EXACT = ("--engine", "onnxruntime-cpu", "--precision", "fp32", "--threads", "1")


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def post(
        self, body: bytes, headers: dict[str, str] | None = None, **query: object
    ) -> httpx.Response:
        return httpx.post(
            f"{self.url}/v1/segment", params=query, content=body, headers=headers, timeout=60
        )

    def get(self, path: str, **headers: str | bytes) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=60)

    def metric(self, name: str) -> float:
        """The value of a sample, labels included in its name."""
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def stop(self, patience: float = 60) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience)


@contextmanager
def serving(folder: Path, *options: str, **environment: str) -> Iterator[Server]:
    """Start a server on a free port."""
    log = folder / "server.log"
    command = [sys.executable, "-c", CODE, "serve", "--port", "0", *EXACT, *options]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, env={**os.environ, **environment})
    try:
        yield Server(process, _url(process, log), log)
    finally:
        process.kill()
        process.wait()


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := re.search(r"serving at (\S+)/\n", log.read_text()):
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"no server: {log.read_text()}")


def wait_until(reached: object, seconds: float = 60) -> None:
    """Wait for a condition, a function without arguments."""
    assert callable(reached)
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.02)


def sample(height: int = 96, width: int = 128, top: int = 0) -> Uint8:
    """A part of the sample slice; mitochondria begin at LEFT."""
    left = LEFT if width < 1024 else 0
    return np.ascontiguousarray(read_sample().images[0, top : top + height, left : left + width])


def encoded(image: Uint8, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def npy(array: npt.NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def load_npy(body: bytes) -> npt.NDArray[np.generic]:
    array: npt.NDArray[np.generic] = np.load(io.BytesIO(body), allow_pickle=False)
    return array


def load_image(body: bytes) -> Uint8:
    return np.asarray(Image.open(io.BytesIO(body)))
