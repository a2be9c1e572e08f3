"""What a client did wrong, as JSON: what was got, what is accepted."""

from __future__ import annotations

from http import HTTPStatus

from fastapi.responses import JSONResponse

from engines.errors import UserError


class ApiError(UserError):
    """An answer that is not what was asked for.

    Args:
        status: of HTTP.
        got: what the request held.
        accepted: what the server takes instead, or what to do.
        headers: of the answer.
    """

    def __init__(
        self, status: int, got: str, accepted: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(f"{got}; {accepted}")
        self.status, self.got, self.accepted = status, got, accepted
        self.headers = headers or {}


def error_response(error: ApiError) -> JSONResponse:
    """The JSON of an error: ``error`` (the status in words), ``got`` and ``accepted``."""
    content = {
        "error": HTTPStatus(error.status).phrase,
        "got": error.got,
        "accepted": error.accepted,
    }
    return JSONResponse(content, error.status, error.headers)
