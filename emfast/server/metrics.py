"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from emfast.segmentation.segmenter import Segmenter
from emfast.server.batching import Ran
from emfast.server.limits import House

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SLICES = (1, 2, 4, 8, 16, 32, 64)
# Stages of a request, in order.
STAGES = ("receive", "decode", "segment", "encode")


class Metrics:
    """Counts of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.answers = Counter(
            "emfast_answers_total",
            "Answers, by path and HTTP status; 499 is a client that left before",
            ("path", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "emfast_answer_seconds",
            "From a request's headers to its answer",
            ("path",),
            registry=registry,
            buckets=SECONDS,
        )
        self._stages = Histogram(
            "emfast_stage_seconds",
            f"Of a segmentation: {', '.join(STAGES)}",
            ("stage",),
            registry=registry,
            buckets=SECONDS,
        )
        self._waited = Histogram(
            "emfast_queue_seconds",
            "That a slice waits for a worker",
            registry=registry,
            buckets=SECONDS,
        )
        self._engine = Histogram(
            "emfast_batch_seconds",
            "Of a batch on the engine",
            registry=registry,
            buckets=SECONDS,
        )
        self._batches = Histogram(
            "emfast_batch_slices",
            "Slices that ran together",
            registry=registry,
            buckets=SLICES,
        )
        self._pixels = Counter("emfast_pixels_total", "Segmented", registry=registry)

    def watch(self, segmenter: Segmenter, house: House, waiting: Callable[[], int]) -> None:
        """Tell what runs, and how full the house is."""
        engine = Info("emfast_engine", "What runs", registry=self.registry)
        manifest = segmenter.bundle.manifest
        engine.info(
            {
                **segmenter.info.to_dict(),
                "bundle": manifest.name,
                "sha256": segmenter.bundle.sha256,
            }
        )
        for name, meaning, value in (
            ("emfast_queue_slices", "Slices that wait for a worker", waiting),
            ("emfast_requests", "In the server", lambda: house.requests.taken),
            ("emfast_requests_limit", "Beyond it: 429", lambda: house.requests.limit),
            ("emfast_held_bytes", "Of bodies, held", lambda: house.bytes.taken),
            ("emfast_held_pixels", "Decoded and held, once a byte", lambda: house.pixels.taken),
        ):
            Gauge(name, meaning, registry=self.registry).set_function(value)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self.answers.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    @contextmanager
    def stage(self, name: str, timings: dict[str, float]) -> Iterator[None]:
        """Time a stage that ends well, also into ``timings``, in seconds."""
        start = perf_counter()
        yield
        timings[name] = perf_counter() - start
        self._stages.labels(name).observe(timings[name])

    def ran(self, batch: Ran) -> None:
        """Count a batch; called on the workers' threads."""
        self._batches.observe(batch.slices)
        self._engine.observe(batch.seconds)
        self._pixels.inc(batch.pixels)
        for seconds in batch.waited:
            self._waited.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
