"""TensorRT's timing cache: what kernels took on a GPU, kept from one build to the next."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from engines.errors import UserError
from engines.files import atomic_write

# TensorRT takes a damaged cache for an empty one and does not tell its caller: in the file a
# SHA-256 stands before TensorRT's bytes.
DIGEST = hashlib.sha256().digest_size


class TimingCache:
    """The timings that one build starts from and adds to.

    Args:
        config: TensorRT's builder configuration, which gets them.
        path: their file, for one GPU and one version of TensorRT. One that is missing, damaged or
            of another GPU is taken for empty.

    Attributes:
        warnings: one line for each thing that went wrong; an engine is not lost over its timings.
    """

    def __init__(self, config: Any, path: Path) -> None:
        self._config, self._path = config, path
        self.warnings: list[str] = []
        self._cache = config.create_timing_cache(self._read())
        if self._cache is None or not config.set_timing_cache(self._cache, False):
            self._warn("TensorRT refuses this timing cache")
            self._cache = config.create_timing_cache(b"")
            config.set_timing_cache(self._cache, False)

    def save(self) -> None:
        """Write what is known after the build, with what others have written meanwhile."""
        others = self._config.create_timing_cache(self._read())
        if others is not None:
            self._cache.combine(others, False)
        data = bytes(self._cache.serialize())
        try:
            with atomic_write(self._path) as temporary:
                temporary.write_bytes(hashlib.sha256(data).digest() + data)
        except UserError as error:
            self.warnings.append(f"timings of this build are not kept: {error}")

    def _read(self) -> bytes:
        """TensorRT's bytes; none where there is no whole file."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self._warn(f"timing cache cannot be read ({error.strerror})")
            return b""
        digest, data = content[:DIGEST], content[DIGEST:]
        if hashlib.sha256(data).digest() == digest:
            return data
        self._warn("timing cache is damaged")
        return b""

    def _warn(self, what: str) -> None:
        warning = f"{self._path}: {what}; all kernels are timed again"
        if warning not in self.warnings:  # the file is read before and after
            self.warnings.append(warning)
