"""Reading a request's body, within limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from emfast.server.errors import ApiError
from emfast.server.limits import Held
from emfast.server.settings import Settings

# After a refusal the rest of the body is read and dropped for so many seconds: a connection that
# is closed while bytes arrive is reset, and the client might never see the answer.
LINGER = 2.0
# A form is parsed in pieces of so many bytes, between which the event loop does other work.
CHUNK = 2**18


async def read_body(request: Request, settings: Settings, held: Held) -> bytes:
    """The image file that a request carries.

    Args:
        request: its body is the file, or multipart/form-data with one file.
        settings: limits.
        held: takes the bytes as they arrive.

    Raises:
        ApiError: 408 for a slow client, 413 for a large body, 422 for a form without one file,
            429 where the server holds too much.
        ClientDisconnect: the client has gone.
    """
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) > settings.max_bytes:
        raise _too_large(f"{declared} bytes", settings)
    body = bytearray()
    try:
        async with asyncio.timeout(settings.client_timeout):
            async for chunk in request.stream():
                if len(body) + len(chunk) > settings.max_bytes:
                    raise _too_large(f"more than {settings.max_bytes} bytes", settings)
                held.take_bytes(len(chunk))
                body += chunk
    except TimeoutError:
        request.state.read = True  # no more of it
        raise ApiError(
            408,
            f"{len(body)} bytes in {settings.client_timeout:g} s, and not the end",
            "a whole body within that time",
            {"Connection": "close"},
        ) from None
    request.state.read = True
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await _only_file(request, bytes(body))
    return bytes(body)


async def drop_rest(request: Request) -> None:
    """Read and drop what a refused client still sends, for a short time."""
    if getattr(request.state, "read", request.method == "GET"):
        return
    # A client that asks first ("Expect: 100-continue") sends nothing after a refusal; to read
    # would be to tell it to go on.
    if "expect" in request.headers:
        return
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(LINGER):
            async for _ in request.stream():
                pass


async def _only_file(request: Request, body: bytes) -> bytes:
    """The one file of a form."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), CHUNK):
            yield body[start : start + CHUNK]
            await asyncio.sleep(0)

    accepted = "one file, as curl -F file=@slice.png sends it"
    try:
        parser = MultiPartParser(request.headers, chunks(), max_files=1, max_fields=16)
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:
        raise ApiError(422, f"a form that cannot be read ({error})", accepted) from None
    try:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise ApiError(422, f"a form with {len(files)} files", accepted)
        return await files[0].read()
    finally:
        await form.close()


def _too_large(got: str, settings: Settings) -> ApiError:
    return ApiError(
        413,
        f"a body of {got}",
        f"at most {settings.max_bytes} bytes; send fewer pages, compress them, or start the "
        "server with a larger --max-bytes",
        {"Connection": "close"},
    )
