from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.emfast.server.serving import encoded, npy, sample, serving, wait_until


def test_requests_in_the_house_are_answered(tmp_path: Path) -> None:
    body = npy(sample())
    head = f"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with serving(tmp_path, "--workers", "2") as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(4)]
        for client in clients:
            client.sendall(head.encode() + body[:100])
        wait_until(lambda: server.metric("emfast_held_bytes") == 400)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/readyz").status_code == 503)
        assert server.get("/healthz").status_code == 200
        late = server.post(encoded(sample()))
        assert late.status_code == 503
        assert late.json()["got"] == "a request while the server stops"
        for client in clients:
            client.sendall(body[100:])
        assert [client.recv(65536).split()[1] for client in clients] == [b"200"] * 4
        assert server.process.wait(60) == 0
        assert server.log.read_text().endswith("stopped\n")
        with pytest.raises(httpx.ConnectError):
            server.get("/healthz")


def test_an_idle_server_stops_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as server, httpx.Client() as client:
        client.get(f"{server.url}/healthz")  # and keeps its connection
        assert server.stop(20) == 0


def test_the_second_signal_does_not_wait(tmp_path: Path) -> None:
    with serving(tmp_path) as server, server.connect() as connection:
        connection.sendall(
            b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx"
        )
        wait_until(lambda: server.metric("emfast_held_bytes") == 1)
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: server.get("/readyz").status_code == 503)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
