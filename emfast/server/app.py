"""The paths of the server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from emfast import __version__
from emfast.data.sample import IMAGE
from emfast.segmentation.greys import Greys
from emfast.segmentation.segmenter import Segmenter
from emfast.server import openapi
from emfast.server.batching import Reading
from emfast.server.encode import Output
from emfast.server.handlers import add_handlers
from emfast.server.security import Guard
from emfast.server.service import Service

PAGE = Path(__file__).parent / "page"
# Everything that the two pages load.
FILES = {
    "/": PAGE / "index.html",
    "/docs": PAGE / "docs.html",
    "/style.css": PAGE / "style.css",
    "/page.js": PAGE / "page.js",
    "/outline.js": PAGE / "outline.js",
    "/docs.js": PAGE / "docs.js",
    "/sample.png": IMAGE,
}


def make_app(service: Service, segmenter: Segmenter) -> FastAPI:
    """Put a service behind its paths.

    Args:
        service: answers the segmentations.
        segmenter: one of those that run, to be described.
    """
    # FastAPI's own pages load scripts from elsewhere; /docs is ours.
    app = FastAPI(
        title="emfast",
        version=__version__,
        description=openapi.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
    )
    add_handlers(app)
    model = _describe(service, segmenter)

    @app.post("/v1/segment", response_class=Response, **openapi.SEGMENT)
    async def segment(
        request: Request,
        output: Annotated[Output, Query(description=openapi.OUTPUT)] = Output.PNG,
        threshold: Annotated[
            float | None, Query(ge=0, le=1, description=openapi.THRESHOLD, examples=[0.5])
        ] = None,
        label: Annotated[int, Query(description=openapi.LABEL)] = 1,
        invert: Annotated[bool, Query(description=openapi.INVERT)] = False,
        pixel_size: Annotated[
            float | None, Query(gt=0, description=openapi.PIXEL_SIZE, examples=[8.0])
        ] = None,
    ) -> Response:
        size = None if pixel_size is None else (pixel_size, pixel_size)
        reading = Reading(Greys(invert), size)
        return await service.answer(request, output, threshold, label, reading)

    @app.get("/v1/model", summary="What runs here, and its limits")
    async def describe() -> dict[str, Any]:
        return model

    @app.get("/healthz", summary="Whether the process is well")
    async def health() -> JSONResponse:
        well = service.batcher.alive
        return JSONResponse({"status": "ok" if well else "a worker died"}, 200 if well else 503)

    @app.get("/readyz", summary="Whether requests are taken: 503 while the server stops")
    async def ready() -> JSONResponse:
        stops = service.house.draining
        return JSONResponse({"status": "stopping" if stops else "ready"}, 503 if stops else 200)

    @app.get("/metrics", response_class=PlainTextResponse, summary="For Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    for path, file in FILES.items():
        app.get(path, include_in_schema=False)(_file(file))
    paths = frozenset(getattr(route, "path", "") for route in app.routes)
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics, paths=paths)
    return app


def _file(path: Path) -> Callable[[], Any]:
    async def answer() -> FileResponse:
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    return answer


def _describe(service: Service, segmenter: Segmenter) -> dict[str, Any]:
    """The answer of ``/v1/model``."""
    manifest, spec, settings = segmenter.bundle.manifest, service.spec, service.settings
    return {
        "bundle": {"name": manifest.name, "sha256": segmenter.bundle.sha256},
        "labels": list(spec.labels),
        "threshold": spec.threshold,
        "normalization": spec.normalization,
        "pixel_size": spec.pixel_size,
        "engine": segmenter.info.to_dict(),
        "passed_over": list(segmenter.passed_over),
        "workers": settings.workers,
        "limits": {
            "bytes": settings.max_bytes,
            "pixels": settings.max_pixels,
            "requests": settings.queue,
        },
    }
