from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.emfast.server.serving import encoded, npy, sample, serving, wait_until


def test_requests_in_the_house_are_answered(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as server, ThreadPoolExecutor(4) as pool:
        work = [pool.submit(server.post, npy(sample(768, 1024))) for _ in range(4)]
        wait_until(lambda: server.metric("emfast_requests") == 4)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/readyz").status_code == 503)
        assert server.get("/healthz").status_code == 200
        late = server.post(encoded(sample()))
        assert late.status_code == 503
        assert late.json()["got"] == "a request while the server stops"
        assert [future.result().status_code for future in work] == [200] * 4
        assert server.process.wait(20) == 0
        assert server.log.read_text().endswith("stopped\n")
        with pytest.raises(httpx.ConnectError):
            server.get("/healthz")


def test_an_idle_server_stops_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as server, httpx.Client() as client:
        client.get(f"{server.url}/healthz")  # and keeps its connection
        assert server.stop(5) == 0


def test_the_second_signal_does_not_wait(tmp_path: Path) -> None:
    with serving(tmp_path) as server, server.connect() as connection:
        connection.sendall(
            b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx"
        )
        wait_until(lambda: server.metric("emfast_held_bytes") == 1)
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: server.get("/readyz").status_code == 503)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 0
