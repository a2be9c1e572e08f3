"""One segmentation, from a request's body to the bytes of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from emfast.segmentation.preprocessing import SegmenterSpec
from emfast.server.batching import AS_STORED, Batcher, Reading
from emfast.server.body import read_body
from emfast.server.decode import Decoded, decode
from emfast.server.encode import MEDIA_TYPES, Kept, Output, Wanted
from emfast.server.limits import Held, House
from emfast.server.metrics import Metrics
from emfast.server.settings import Settings
from engines.onnxruntime import cpu_count

# nginx's status for a client that left; it never sees it, the metrics do.
LEFT = 499


class Service:
    """Takes requests through their stages; the event loop only waits.

    Attributes:
        settings: limits.
        spec: of the segmenter.
        batcher: runs the slices.
        house: what is held at once.
        metrics: of this server.
    """

    def __init__(
        self,
        settings: Settings,
        spec: SegmenterSpec,
        batcher: Batcher,
        house: House,
        metrics: Metrics,
    ) -> None:
        self.settings, self.spec, self.batcher = settings, spec, batcher
        self.house, self.metrics = house, metrics
        # The house bounds what waits for these threads.
        self._pool = ThreadPoolExecutor(max(2, cpu_count()), "codec")

    async def answer(
        self,
        request: Request,
        output: Output,
        threshold: float | None = None,
        label: int = 1,
        reading: Reading = AS_STORED,
    ) -> Response:
        """Answer ``POST /v1/segment``.

        Raises:
            ApiError: a request that is not answered, with the reason.
            UserError: an image or a network that cannot be used.
        """
        spec = self.spec if threshold is None else replace(self.spec, threshold=threshold)
        wanted = Wanted(output, spec, label, reading)
        start = perf_counter()
        with self.house.admit() as held:
            try:
                body, read_as, timings = await self._run(request, wanted, held)
            except ClientDisconnect:
                return Response(status_code=LEFT)
        self.house.answered(perf_counter() - start)
        timing = ", ".join(f"{name};dur={1e3 * value:.1f}" for name, value in timings.items())
        return Response(
            body, 200, {"Server-Timing": timing, "Emfast-Read-As": read_as}, MEDIA_TYPES[output]
        )

    def close(self) -> None:
        """End the threads that decode and encode."""
        self._pool.shutdown()

    async def _run(
        self, request: Request, wanted: Wanted, held: Held
    ) -> tuple[bytes, str, dict[str, float]]:
        """The stages; bytes of the answer, how greys were read, and seconds of each stage."""
        timings: dict[str, float] = {}
        with self.metrics.stage("receive", timings):
            body = await read_body(request, self.settings, held)
        with self.metrics.stage("decode", timings):
            decoded, wanted, read_as = await self._in_pool(
                _decode, body, wanted, self.settings.max_pixels
            )
        del body
        held.swap(decoded.slices.nbytes)
        with self.metrics.stage("segment", timings):
            kept = await self._segment(request, decoded, wanted)
        with self.metrics.stage("encode", timings):
            return await self._in_pool(wanted.encode, decoded, kept), read_as, timings

    async def _in_pool(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def _segment(self, request: Request, decoded: Decoded, wanted: Wanted) -> list[Kept]:
        """Wait for the batcher; a client that leaves takes its slices out of the queue."""
        jobs = self.batcher.submit(decoded.slices, wanted.reduce, wanted.reading)
        results = asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
        left = asyncio.create_task(_left(request))
        try:
            waited: set[asyncio.Future[Any]] = {results, left}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not results.done():
                raise ClientDisconnect
            return results.result()
        finally:
            left.cancel()
            self.batcher.cancel(jobs)
            results.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await results


def _decode(body: bytes, wanted: Wanted, max_pixels: int) -> tuple[Decoded, Wanted, str]:
    """A body's slices, what is wanted of them, and how they are read."""
    decoded = decode(body, max_pixels)
    wanted = wanted.completed(decoded)
    wanted.check(decoded, max_pixels)
    return decoded, wanted, wanted.read_as(decoded)


async def _left(request: Request) -> None:
    """Wait until the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
