"""What a server is started with."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from emfast.segmentation.segmenter import SHIPPED
from engines.errors import UserError

MEBI = 2**20
# Bodies and pixels that the server holds at once, as multiples of the limits of one request.
HELD = 4


@dataclass(frozen=True)
class Settings:
    """Address, engine and limits of a server.

    Attributes:
        host, port: to listen on; port 0 takes a free one.
        model: name of a shipped bundle, or the folder of another one.
        engine, precision: as for :meth:`emfast.segmentation.segmenter.Segmenter.open`.
        threads: CPU threads of each worker; by default the processors are shared out.
        threshold: in [0, 1], where a request gives none; the bundle's by default.
        workers: engines that run side by side, each in a thread of its own.
        max_wait: seconds that a slice may wait for others of its size to run with.
        max_batch: slices that run together; by default one on a CPU, which a slice alone keeps
            busy, and elsewhere what the segmenter runs in one piece.
        queue: requests that are in the server at once; further ones get 429.
        max_bytes: of one request's body.
        max_pixels: of one request, all pages together; wider than 8 bits they count once a byte.
        client_timeout: seconds that a client may take to send its request, and to take its answer.
        token: that requests must bear; None asks for none.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model: str | Path = SHIPPED
    engine: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    threshold: float | None = None
    workers: int = 1
    max_wait: float = 0.005
    max_batch: int | None = None
    queue: int = 64
    max_bytes: int = 64 * MEBI
    max_pixels: int = 64 * MEBI
    client_timeout: float = 60.0
    token: str | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "max_batch", "queue", "max_bytes", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{_option(name)} {value}: at least 1 is needed")
        if self.client_timeout <= 0:
            raise UserError(f"--client-timeout {self.client_timeout:g}: give seconds above 0")
        if self.max_wait < 0:
            raise UserError(f"--max-wait-ms {1e3 * self.max_wait:g}: give milliseconds from 0")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise UserError("the token has letters that a header cannot carry; give ASCII")
        if self.token == "":
            raise UserError("the token is empty; give one, or leave --token and EMFAST_TOKEN out")
        if self.token is None and not is_loopback(self.host):
            raise UserError(
                f"--host {self.host} can be reached from other machines; give a token "
                "(EMFAST_TOKEN or --token), or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
