"""Connections that do not wait for ever: uvicorn's, with limits of time."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)


def limited_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol for clients that send their headers and take their answers in time.

    uvicorn limits neither: a client that sends half a header or reads nothing would hold its
    connection, and the answer's memory, for good. Bodies are limited where they are read.

    Args:
        seconds: for either.
    """

    class LimitedProtocol(H11Protocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._headers_due: asyncio.TimerHandle | None = None
            self._taken_due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # Told as soon as anything waits to be taken, and not from 64 KiB on.
            transport.set_write_buffer_limits(high=0)
            self._headers_due = self.loop.call_later(seconds, self._late)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waiting = self.conn.their_state is h11.IDLE
            if waiting and self._headers_due is None:  # the next request's headers began
                self._headers_due = self.loop.call_later(seconds, self._late)
            elif not waiting and self._headers_due is not None:
                self._headers_due.cancel()
                self._headers_due = None

        def _late(self) -> None:
            self._headers_due = None
            if not self.transport.is_closing():
                body = b'{"error":"Request Timeout","got":"no whole header within %g s",' % seconds
                body += b'"accepted":"a request that is sent at once"}'
                self.transport.write(LATE % (len(body), body))
                self.transport.close()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._taken_due = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._cancel_taken()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._cancel_taken()
            if self._headers_due is not None:
                self._headers_due.cancel()

        def _cancel_taken(self) -> None:
            if self._taken_due is not None:
                self._taken_due.cancel()
                self._taken_due = None

    return LimitedProtocol
