"""Who may ask, and what a browser may do with the answers."""

from __future__ import annotations

import hmac
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emfast.server.body import drop_rest
from emfast.server.errors import ApiError, error_response
from emfast.server.metrics import Metrics
from emfast.server.settings import Settings, is_loopback

# Scripts, styles and pictures of this server alone, and pictures that the page itself made.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
GUARDED = ("/v1/", "/metrics")


class Guard:
    """ASGI middleware: the token, the host, the headers of every answer, and its count.

    Args:
        app: what it guards.
        settings: token and host.
        metrics: counts the answers.
        paths: that are counted by name; all others as "other".
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, paths: frozenset[str]
    ) -> None:
        self._app, self._settings, self._metrics, self._paths = app, settings, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = perf_counter()
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def send_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
                self._metrics.answered(path, message["status"], perf_counter() - start)
            await send(message)

        try:
            check(Headers(scope=scope), scope["path"], self._settings)
        except ApiError as error:
            await drop_rest(Request(scope, receive))
            await error_response(error)(scope, receive, send_headers)
            return
        await self._app(scope, receive, send_headers)


def check(headers: Headers, path: str, settings: Settings) -> None:
    """Refuse a request that may not be answered.

    Raises:
        ApiError: 401 for a wrong token; 421 where the server has no token and is asked by a name
            that is not this machine's: a web page can give its own name this machine's address.
    """
    if settings.token is None:
        host = headers.get("host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if not is_loopback(name.strip("[]")):
            raise ApiError(
                421, f"host {host!r}", "localhost; behind a proxy, start the server with a token"
            )
        return
    if not path.startswith(GUARDED):
        return
    scheme, _, token = headers.get("authorization", "").partition(" ")
    # Bytes, since compare_digest takes ASCII text only.
    right = hmac.compare_digest(token.strip().encode(), settings.token.encode())
    if scheme.lower() != "bearer" or not right:
        got = "a wrong token" if token else "no token"
        accepted = "the header Authorization: Bearer TOKEN"
        raise ApiError(401, got, accepted, {"WWW-Authenticate": "Bearer", "Connection": "close"})
