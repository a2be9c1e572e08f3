"""The files of the engine cache: how they are named, locked and removed.

    <name>.engine                     what TensorRT built
    <name>.json                       its sidecar: the recipe, size and SHA-256, verifications
    <name>.<gpu>.kernels              kernels that TensorRT-RTX compiled for it on a GPU
    <name>.lock                       held by the process that writes or removes these
    timing-<version>-<gpu>.cache      what TensorRT measured, which shortens later builds

The name is the start of a recipe's key.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import platformdirs

from engines.errors import UserError

# No other file is ever touched: EMFAST_CACHE may name a folder that holds more than engines.
ENTRY = re.compile(r"([0-9a-f]{16})\.(?:engine|json|lock|[a-z0-9-]+\.kernels)")
UNFINISHED = re.compile(r"\.([0-9a-f]{16})\.\d+\.tmp\.(?:engine|json)")
TIMING = re.compile(r"timing-[a-z0-9-]+\.cache")
# Kernels and timings are written without the lock: only its age tells an abandoned file.
UNLOCKED = re.compile(r"\.(?:[0-9a-f]{16}\.|timing-)[a-z0-9-]+\.\d+\.tmp\.(?:kernels|cache)")
ABANDONED_SECONDS = 3600
POLL_SECONDS = 0.2


def cache_folder() -> Path:
    """Where engines are kept: ``$EMFAST_CACHE``, or ``emfast/engines`` in the user's cache."""
    named = os.environ.get("EMFAST_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("emfast") / "engines"


class BusyError(UserError):
    """Another process works on the files of a name."""


class CacheFolder:
    """A folder in which the files of a name belong together.

    Args:
        path: of the folder, absolute; made when a lock is first taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def files(self) -> list[Path]:
        """All files that the cache made, in the order of their names.

        Raises:
            UserError: the folder cannot be read.
        """
        patterns = (ENTRY, UNFINISHED, TIMING, UNLOCKED)
        try:
            found = [p for p in self.path.iterdir() if any(r.fullmatch(p.name) for r in patterns)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"engine cache {self.path}: cannot be read ({reason})") from error
        return sorted(found)

    def names(self) -> list[str]:
        """The names that there are files of, finished or not."""
        matches = [r.fullmatch(path.name) for path in self.files() for r in (ENTRY, UNFINISHED)]
        return sorted({match[1] for match in matches if match})

    def engine(self, name: str) -> Path:
        """The engine file."""
        return self.path / f"{name}.engine"

    def sidecar(self, name: str) -> Path:
        """The file whose presence makes an entry."""
        return self.path / f"{name}.json"

    def lock_path(self, name: str) -> Path:
        """The file that is locked."""
        return self.path / f"{name}.lock"

    def lock(self, name: str) -> filelock.BaseFileLock:
        """The lock of a name; the thread that holds it may take it again.

        flock frees that of a killed process. The file stays when it is freed: whoever waits for
        it has it open.

        Raises:
            OSError: the folder cannot be made.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(
            self.lock_path(name), is_singleton=True, poll_interval=POLL_SECONDS
        )

    @contextmanager
    def writing(self, size: int = 0) -> Iterator[None]:
        """Tell what to do when the folder cannot be written.

        Args:
            size: bytes that are written, told where the disk is full.

        Raises:
            UserError: in place of an OSError or of what :func:`engines.files.atomic_write` raises.
        """
        try:
            yield
        except (OSError, UserError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            reason = cause.strerror or cause
            advice = "set EMFAST_CACHE to a folder that can be written"
            if cause.errno in (errno.ENOSPC, errno.EDQUOT):
                needed = f" for {size / 1e6:.1f} MB" if size else ""
                reason = f"{reason}{needed}"
                advice = "make room (emfast engines prune), or set EMFAST_CACHE to another disk"
            raise UserError(
                f"engine cache {self.path}: cannot be written ({reason}); {advice}"
            ) from error

    @contextmanager
    def held(self, name: str, seconds: float = 0) -> Iterator[None]:
        """Hold the lock of a name, to change its files.

        Args:
            name: of the files.
            seconds: to wait for the lock.

        Raises:
            BusyError: another process holds it.
            UserError: as :meth:`writing`.
        """
        with self.writing():
            try:
                lock = self.lock(name).acquire(timeout=seconds)
            except filelock.Timeout:
                raise BusyError("another process works on it") from None
            with lock:
                yield

    def remove(self, name: str) -> int:
        """Remove the files of a name, whose lock is held. The lock stays.

        Returns:
            Bytes that they took.

        Raises:
            OSError: a file cannot be removed.
        """
        # The sidecar first: without it there is no entry, should this process be killed here.
        owned = [self.sidecar(name)]
        owned += [p for p in self.path.glob(f"{name}.*") if p.suffix in (".engine", ".kernels")]
        return sum(map(delete, owned))

    def remove_unfinished(self, name: str) -> list[tuple[Path, int]]:
        """Remove what a killed process left half-written of a name, whose lock is held.

        Returns:
            Each file with the bytes that it took.

        Raises:
            OSError: a file cannot be removed.
        """
        left = [p for p in self.files() if (m := UNFINISHED.fullmatch(p.name)) and m[1] == name]
        return [(path, delete(path)) for path in left]

    def remove_abandoned(self) -> list[tuple[Path, int]]:
        """As :meth:`remove_unfinished`, for kernels and timings of any name."""
        left = [p for p in self.files() if UNLOCKED.fullmatch(p.name)]
        oldest = time.time() - ABANDONED_SECONDS
        return [(path, delete(path)) for path in left if path.stat().st_mtime < oldest]


def delete(path: Path) -> int:
    """Remove a file that may be gone already; the bytes that it took."""
    size = file_size(path)
    path.unlink(missing_ok=True)
    return size


def file_size(path: Path) -> int:
    """Bytes of a file, 0 if it is gone."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
