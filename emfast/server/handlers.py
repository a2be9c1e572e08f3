"""Every failure in the shape of :func:`~emfast.server.errors.error_response`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from emfast.server.body import drop_rest
from emfast.server.errors import ApiError, error_response
from engines.errors import UserError


def add_handlers(app: FastAPI) -> None:
    """Answer whatever a path of the app raises."""

    @app.exception_handler(ApiError)
    async def _told(request: Request, error: ApiError) -> JSONResponse:
        await drop_rest(request)
        return error_response(error)

    @app.exception_handler(UserError)
    async def _mistake(request: Request, error: UserError) -> JSONResponse:
        return error_response(ApiError(422, str(error), "another image, or other settings"))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first: dict[str, Any] = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:])
        return error_response(ApiError(422, f"{name}={first['input']}", first["msg"]))

    @app.exception_handler(HTTPException)
    async def _routing(request: Request, error: HTTPException) -> JSONResponse:
        paths = ", ".join(sorted({getattr(route, "path", "") for route in app.routes}))
        accepted = {
            404: f"one of {paths}",
            405: f"{(error.headers or {}).get('Allow', 'another method')} at this path",
        }.get(error.status_code, str(error.detail))
        got = f"{request.method} {request.url.path}"
        headers = dict(error.headers or {})
        return error_response(ApiError(error.status_code, got, accepted, headers))

    @app.exception_handler(Exception)
    async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises it again for the log; the client learns nothing of the inside.
        return error_response(ApiError(500, "a failure of the server", "see the server's log"))
