"""Writing batches of a set while the next ones are drawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np

from emfast.channels import Uint8
from emfast.data.pairs import encode_pair
from emfast.quality.image_scores import image_scores
from emfast.synthesis.folder import SetFolder
from engines.onnxruntime import cpu_count

# Batches that wait to be written at a time. More would hide a disk that is too slow, in memory.
WAITING = 2
# Threads that encode the images of a batch: on a GPU with few steps one thread would be slower
# than the network.
MOST_ENCODERS = 8

Decoded = Callable[[], tuple[Uint8, Uint8]]


class SetWriter:
    """Decodes, scores, encodes and lists batches, in order, in threads of its own.

    A context manager: leaving it waits for what was handed in, so that what was drawn is kept even
    if the engine was lost, and raises what writing raised.

    Args:
        folder: of the set.
        drawn: what all lines of the manifest have in common.
        classes: mask channels of the denoiser. A mask of one class is written as 0 and 255, those
            of more as labels.
        listed: called with the number of images that are newly listed.
    """

    def __init__(
        self,
        folder: SetFolder,
        drawn: dict[str, Any],
        classes: int,
        listed: Callable[[int], None],
    ) -> None:
        self._folder, self._drawn, self._classes, self._listed = folder, drawn, classes, listed
        self._encoders = ThreadPoolExecutor(min(MOST_ENCODERS, cpu_count()), "encoder")
        self._pool = ThreadPoolExecutor(1, "writer")
        self._waiting: deque[Future[None]] = deque()

    def submit(self, indices: list[int], wanted: list[int], decoded: Decoded) -> None:
        """Hand in a batch; waits while too many do.

        Args:
            indices: numbers of the images of the batch.
            wanted: those to write.
            decoded: gives images and label maps, as :meth:`Generator.sample` returns.
        """
        while len(self._waiting) >= WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._write, indices, wanted, decoded))

    def check(self) -> None:
        """Raise what writing has raised so far, without waiting."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()

    def _write(self, indices: list[int], wanted: list[int], decoded: Decoded) -> None:
        images, masks = decoded()
        chosen = [i for i, index in enumerate(indices) if index in wanted]
        entries = self._encoders.map(
            self._one, *([a[i] for i in chosen] for a in (indices, images, masks))
        )
        listed = list(entries)
        self._folder.append(listed)
        self._listed(len(listed))

    def _one(self, index: int, image: Uint8, mask: Uint8) -> dict[str, Any]:
        """Write one image; returns its line of the manifest."""
        stored = mask * np.uint8(255) if self._classes == 1 else mask
        pixels = {"images": image, "masks": stored}
        if "pairs" in self._folder.kinds:
            pixels["pairs"] = encode_pair(image, mask)
        return {
            "index": index,
            **self._drawn,
            "scores": image_scores(image, mask),
            "files": self._folder.write(index, pixels),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            while self._waiting:
                self._waiting.popleft().result()
        finally:
            # A batch behind one that failed would fail in the same way, image by image.
            self._pool.shutdown(cancel_futures=True)
            self._encoders.shutdown(cancel_futures=True)
