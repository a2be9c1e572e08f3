"""How much the server holds at once: beyond it, clients are asked to come again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from emfast.server.errors import ApiError
from emfast.server.settings import HELD, Settings


class Budget:
    """An amount of which parts are taken and given back; used on the event loop alone.

    Attributes:
        limit: the whole amount.
        taken: of it.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    def take(self, amount: int) -> bool:
        """Take a part, unless too little is left."""
        if self.taken + amount > self.limit:
            return False
        self.taken += amount
        return True

    def give(self, amount: int) -> None:
        """Give a part back."""
        self.taken -= amount


class House:
    """The requests that are in the server, from their headers to their answers.

    Attributes:
        requests: their number.
        bytes: of their bodies.
        pixels: of their decoded images.
        draining: whether the server is about to stop.
    """

    def __init__(self, settings: Settings) -> None:
        self.requests = Budget(settings.queue)
        self.bytes = Budget(HELD * settings.max_bytes)
        self.pixels = Budget(HELD * settings.max_pixels)
        self.draining = False
        self._seconds = 1.0

    @contextmanager
    def admit(self) -> Iterator[Held]:
        """Let a request in.

        Raises:
            ApiError: 429 where the house is full, 503 where the server is about to stop.
        """
        if self.draining:
            raise ApiError(
                503,
                "a request while the server stops",
                "the same request at another server, or later",
                {"Retry-After": "5", "Connection": "close"},
            )
        if not self.requests.take(1):
            raise self.full(f"a request beside {self.requests.limit} others")
        held = Held(self)
        try:
            yield held
        finally:
            self.requests.give(1)
            held.release()

    def answered(self, seconds: float) -> None:
        """Learn how long a request was in the house: what clients are told to wait."""
        self._seconds += 0.1 * (seconds - self._seconds)

    def full(self, got: str) -> ApiError:
        """429, with the time after which to come again: that of a recent request."""
        wait = min(max(round(self._seconds), 1), 60)
        return ApiError(
            429,
            got,
            f"at most {self.requests.limit} requests, {self.bytes.limit} bytes and "
            f"{self.pixels.limit} pixels at once; try again after {wait} s",
            {"Retry-After": str(wait)},
        )


class Held:
    """What one request holds of the house's bytes and pixels."""

    def __init__(self, house: House) -> None:
        self._house, self._bytes, self._pixels = house, 0, 0

    def take_bytes(self, amount: int) -> None:
        """Hold more of the body; :class:`ApiError` 429 where the house is full."""
        if not self._house.bytes.take(amount):
            raise self._house.full(f"a body of {self._bytes + amount} bytes or more beside others")
        self._bytes += amount

    def swap(self, pixels: int) -> None:
        """Hold decoded pixels instead of the body; :class:`ApiError` 429 as above."""
        if not self._house.pixels.take(pixels):
            raise self._house.full(f"an image of {pixels} pixels beside others")
        self._pixels += pixels
        self._house.bytes.give(self._bytes)
        self._bytes = 0

    def release(self) -> None:
        """Give everything back."""
        self._house.bytes.give(self._bytes)
        self._house.pixels.give(self._pixels)
        self._bytes = self._pixels = 0
