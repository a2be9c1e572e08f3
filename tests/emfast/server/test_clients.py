"""Clients that are slow, gone, greedy or hostile; the server answers the others meanwhile."""

from __future__ import annotations

import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import tifffile

from tests.emfast.server.serving import Server, encoded, npy, sample, serving, wait_until


def received(connection: socket.socket) -> tuple[int, dict[str, str]]:
    """Status and JSON of an answer that ends with the connection."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def header(length: object, more: str = "", path: str = "/v1/segment") -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"{more}Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


def png_that_declares(width: int, height: int) -> bytes:
    """A few bytes that are an image of any size by their header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def peak_memory(server: Server) -> int:
    """Bytes that the server ever held."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1])


def test_slow_body(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(header(1000) + b"\x89PNG")
        start = time.monotonic()
        status, told = received(connection)
    assert status == 408
    assert told["got"] == "4 bytes in 2 s, and not the end"
    assert time.monotonic() - start > 1.5


def test_half_a_header(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: local")
        status, told = received(connection)
    assert status == 408
    assert "header" in told["got"]


def test_half_a_header_after_a_request(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)
        connection.sendall(b"GET /hea")
        assert received(connection)[0] == 408


def test_half_a_body_and_gone(server: Server) -> None:
    name = 'emfast_answers_total{path="/v1/segment",status="499"}'
    before = server.metric(name)
    with server.connect() as connection:
        connection.sendall(header(1000) + b"\x89PNG")
        wait_until(lambda: server.metric("emfast_held_bytes") > 0)
    wait_until(lambda: server.metric(name) == before + 1)
    wait_until(lambda: server.metric("emfast_requests") == 0)
    assert server.metric("emfast_held_bytes") == 0


def test_a_client_that_left_takes_its_slices_along(server: Server) -> None:
    stack = npy(np.stack([sample(128, 128)] * 64))
    with server.connect() as connection:
        connection.sendall(header(len(stack), path="/v1/segment?output=npy") + stack)
        wait_until(lambda: server.metric("emfast_queue_slices") > 0)
        before = server.metric("emfast_pixels_total")
    wait_until(lambda: server.metric("emfast_requests") == 0)
    assert server.metric("emfast_queue_slices") == 0
    assert server.metric("emfast_held_pixels") == 0
    assert server.metric("emfast_pixels_total") - before < 64 * 128 * 128


def test_a_client_that_takes_nothing(server: Server) -> None:
    """Its answers do not stay in memory for good: the connection is cut."""
    body = npy(sample(1024, 1024))
    request = header(len(body), path="/v1/segment?output=probability") + body
    before = server.metric("process_open_fds")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        with suppress(ConnectionError):
            for _ in range(4):  # more than the kernel keeps
                connection.sendall(request)
        wait_until(lambda: server.metric("emfast_requests") == 0)
        wait_until(lambda: server.metric("process_open_fds") <= before)


def test_too_many_bytes(server: Server) -> None:
    answer = server.post(b"x" * 2_000_001)
    assert answer.status_code == 413
    assert answer.json()["got"] == "a body of 2000001 bytes"

    def chunks() -> Iterator[bytes]:
        for _ in range(64):
            yield bytes(2**16)

    answer = httpx.post(f"{server.url}/v1/segment", content=chunks(), timeout=30)
    assert answer.status_code == 413
    assert answer.json()["got"] == "a body of more than 2000000 bytes"
    assert "--max-bytes" in answer.json()["accepted"]


def test_a_client_that_asks_first_sends_nothing(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(header(10**12, "Expect: 100-continue\r\n"))
        status, told = received(connection)
    assert status == 413
    assert told["got"] == "a body of 1000000000000 bytes"


@pytest.mark.parametrize("size", [(2000, 2000), (12000, 12000), (60000, 60000), (2**31 - 1, 9)])
def test_png_bomb(server: Server, size: tuple[int, int]) -> None:
    start = time.monotonic()
    answer = server.post(png_that_declares(*size))
    assert answer.status_code == 413, answer.text
    assert "1048576 pixels" in answer.json()["accepted"]
    assert time.monotonic() - start < 2


def test_npy_bomb(server: Server) -> None:
    text = npy(np.zeros((4, 4), np.uint8))
    answer = server.post(text.replace(b"(4, 4)", b"(9**9, 4)"[:9]).replace(b"  \n", b"\n"))
    assert answer.status_code == 422
    for shape in (b"(400000, 400000), }", b"(99999999999999999999, 99999999999999999999), }"):
        raw = b"{'descr': '|u1', 'fortran_order': False, 'shape': " + shape + b"\n"
        body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw
        assert server.post(body).status_code == 413


def tiff_with(**tags: int) -> bytes:
    """A TIFF of 8 x 8 pixels, deflated, of which tags are changed."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((8, 8), np.uint8), compression="zlib")
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        for name, value in tags.items():
            tiff.pages.first.tags[name].overwrite(value)
    return file.getvalue()


def test_tiff_bombs(server: Server) -> None:
    for tags in (
        {"ImageWidth": 2**31 - 1, "ImageLength": 2**31 - 1},
        {"ImageLength": 2**31 - 1},
        {"RowsPerStrip": 2**31 - 1, "ImageLength": 2**20},
    ):
        answer = server.post(tiff_with(**tags))
        assert answer.status_code == 413, answer.text
    # What some writers put into files of one strip.
    assert server.post(tiff_with(RowsPerStrip=2**32 - 1)).status_code == 200
    tiles = io.BytesIO()
    tifffile.imwrite(tiles, np.zeros((8, 8), np.uint8), tile=(16, 16), compression="zlib")
    tiles.seek(0)
    with tifffile.TiffFile(tiles) as tiff:
        for name in ("TileWidth", "TileLength"):
            tiff.pages.first.tags[name].overwrite(60000)
    assert server.post(tiles.getvalue()).status_code == 413
    assert server.post(tiff_with(SamplesPerPixel=60000)).status_code == 422


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "lzma"])
def test_tiff_whose_strip_holds_more_than_its_page(server: Server, compression: str) -> None:
    file = io.BytesIO()
    black = np.zeros((16384, 16384), np.uint8)
    fast = {} if compression == "lzw" else {"level": 1}
    tifffile.imwrite(file, black, compression=compression, compressionargs=fast, rowsperstrip=16384)
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        tiff.pages.first.tags["ImageWidth"].overwrite(16)
        tiff.pages.first.tags["ImageLength"].overwrite(16)
    before = peak_memory(server)
    assert server.post(file.getvalue()).status_code in (200, 422)
    assert peak_memory(server) < before + black.nbytes / 4


def test_tiff_with_an_image_format_inside(server: Server) -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, sample(), compression="jpeg")
    answer = server.post(file.getvalue())
    assert answer.status_code == 415
    assert answer.json()["got"] == "page 0 compressed as JPEG"


def test_tiff_with_too_many_pages(server: Server) -> None:
    file = io.BytesIO()
    tifffile.imwrite(
        file, np.zeros((4097, 1, 1), np.uint8), photometric="minisblack", metadata=None
    )
    answer = server.post(file.getvalue())
    assert answer.status_code == 413
    assert answer.json()["got"] == "more than 4096 pages"


def test_array_with_too_many_slices(server: Server) -> None:
    answer = server.post(npy(np.zeros((4097, 1, 1), np.uint8)))
    assert answer.status_code == 413
    assert answer.json()["got"] == "4097 slices"


def test_wide_pixels_count_once_a_byte(server: Server) -> None:
    image = np.zeros((1024, 600), np.uint16)
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, image, compression="zlib")
    for body in (npy(image), tiff.getvalue(), encoded(image)):
        answer = server.post(body)
        assert answer.status_code == 413, answer.text
        assert "at most 1048576 pixels of 8 bits" in answer.json()["accepted"]


def test_tiff_whose_pages_go_in_a_circle(server: Server) -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((2, 8, 8), np.uint8), photometric="minisblack", metadata=None)
    body = bytearray(file.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(body))) as tiff:
        last, first = tiff.pages[1].offset, tiff.pages[0].offset
        entries = struct.unpack_from("<H", body, last)[0]
    struct.pack_into("<I", body, last + 2 + 12 * entries, first)
    start = time.monotonic()
    assert server.post(bytes(body)).status_code in (413, 422)
    assert time.monotonic() - start < 5


def test_not_http(server: Server) -> None:
    for data in (b"\x16\x03\x01\x02\x00 a TLS greeting\r\n\r\n", b"\0" * 70000):
        with server.connect() as connection:
            connection.sendall(data)
            assert connection.recv(100).startswith((b"HTTP/1.1 400", b""))
    assert server.get("/healthz").status_code == 200


def test_full_server_asks_to_come_again(tmp_path: Path) -> None:
    body = npy(sample(512, 768))
    with serving(tmp_path, "--queue", "2") as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(2)]
        for client in clients:
            client.sendall(header(len(body), "Connection: close\r\n") + body[:100])
        wait_until(lambda: server.metric("emfast_requests") == 2)
        refused = server.post(encoded(sample()))
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["got"] == "a request beside 2 others"
        for client in clients:
            client.sendall(body[100:])
        checks = 0
        while server.metric("emfast_requests"):
            assert server.get("/healthz").status_code == 200
            assert server.get("/readyz").status_code == 200
            checks += 1
        assert checks > 1  # while slices run
        assert [client.recv(65536).split()[1] for client in clients] == [b"200"] * 2
        assert server.post(encoded(sample())).status_code == 200


def test_token(tmp_path: Path) -> None:
    with serving(tmp_path, EMFAST_TOKEN="open sesame") as server:
        body = encoded(sample())
        for header_value in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic open sesame"},
        ):
            answer = server.post(body, header_value)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["accepted"] == "the header Authorization: Bearer TOKEN"
        right = {"authorization": "Bearer open sesame"}
        assert server.post(body, right).status_code == 200
        assert server.get("/v1/model").status_code == 401
        assert server.get("/metrics").status_code == 401
        assert server.get("/metrics", **right).status_code == 200
        assert server.get("/v1/model", authorization=b"Bearer \xe9").status_code == 401
        for path in ("/healthz", "/readyz", "/", "/docs"):
            assert server.get(path).status_code == 200
        assert server.get("/healthz", host="em.example").status_code == 200
        # A large body with a wrong token still gets its answer.
        assert server.post(b"x" * 20_000_000, {"authorization": "Bearer wrong"}).status_code == 401
        assert "sesame" not in server.log.read_text()
