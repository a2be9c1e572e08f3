"""Starting a server, and stopping it without losing an answer."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from types import FrameType

import uvicorn

from emfast.segmentation.segmenter import Segmenter
from emfast.server.app import make_app
from emfast.server.batching import Batcher
from emfast.server.connection import limited_protocol
from emfast.server.limits import House
from emfast.server.metrics import Metrics
from emfast.server.service import Service
from emfast.server.settings import Settings
from engines.errors import UserError
from engines.onnxruntime import cpu_count

Tell = Callable[[str], None]


def serve(settings: Settings, tell: Tell) -> None:
    """Serve until SIGTERM or SIGINT.

    On the first signal ``/readyz`` gives 503 and new segmentations are refused, while those that
    were let in are answered; then the server ends. A second signal ends it at once.

    Args:
        settings: address, engine and limits.
        tell: shown a line for each engine that was passed over, what runs, and the address.

    Raises:
        UserError: an address that cannot be had, or what
            :meth:`~emfast.segmentation.segmenter.Segmenter.open` refuses.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(closing(listen(settings.host, settings.port)))
        segmenters = [stack.enter_context(segmenter) for segmenter in open_segmenters(settings)]
        first = segmenters[0]
        if first.spec.scope != "slice":
            raise UserError(
                f"{settings.model}: takes the statistics of a whole {first.spec.scope}, but the "
                "server segments slice by slice; use emfast segment"
            )
        for line in first.passed_over:
            tell(line)
        noun = "worker" if settings.workers == 1 else "workers"
        tell(f"engine: {first.info}, {settings.workers} {noun}")
        house, metrics = House(settings), Metrics()
        # What the segmenter would run in several pieces gains nothing by waiting for each other.
        alone = first.info.device.startswith("CPU")
        most = settings.max_batch or (1 if alone else first.batch_size((1, 1)))
        batcher = Batcher(segmenters, settings.max_wait, most, metrics.ran)
        stack.callback(batcher.close)
        metrics.watch(first, house, lambda: len(batcher))
        service = Service(settings, first.spec, batcher, house, metrics)
        stack.callback(service.close)
        config = uvicorn.Config(
            make_app(service, first),
            http=limited_protocol(settings.client_timeout),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(settings.client_timeout) + 1,
        )
        DrainingServer(config, house, lambda: tell(f"serving at {address(listener)}")).run(
            [listener]
        )
        tell("stopped")


def open_segmenters(settings: Settings) -> list[Segmenter]:
    """One for each worker, with its share of the processors."""
    threads = settings.threads or max(1, cpu_count() // settings.workers)
    return [
        Segmenter.open(
            settings.model, settings.engine, settings.precision, threads, settings.threshold
        )
        for _ in range(settings.workers)
    ]


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; :class:`UserError` where it cannot be had."""
    try:
        family, _, _, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(place[:2], family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{host} port {port}: cannot listen there ({getattr(error, 'strerror', error)}); "
            "give another --port, or 0 for a free one"
        ) from None


def address(listener: socket.socket) -> str:
    """Of a listening socket, as a browser takes it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which goes on listening until the requests in the house are answered."""

    def __init__(self, config: uvicorn.Config, house: House, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._house, self._started = house, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not told to uvicorn's own handler, which would end this process by the signal again.
        if self._house.draining:
            self.should_exit = self.force_exit = True
        self._house.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._house.draining and self._house.requests.taken == 0:
            self.should_exit = True
        return await super().on_tick(counter)
