"""The engines that were built, kept between runs.

An engine is written first and its sidecar last, each whole or not at all: there is an entry where
there is a sidecar. Reading takes no lock. What is removed or replaced while another process reads
it lives on for that process, as files do on POSIX. Machines may share the folder, since a recipe
names the GPU that it is for. ``cache_folder.py`` says how the files are named.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from engines.cache_folder import TIMING, BusyError, CacheFolder, cache_folder, delete, file_size
from engines.entry import DamagedError, Entry, OtherFormatError, Verification
from engines.errors import UserError
from engines.files import atomic_write
from engines.recipe import GpuIdentity, Recipe

# Two processes may each build one engine while they verify the other's: neither waits for ever.
CHANGE_WAIT_SECONDS = 10
UNFINISHED = "was left half-written by a process that was killed"

logger = logging.getLogger("engines.cache")


@dataclass(frozen=True)
class Removed:
    """What :meth:`EngineCache.prune` removed.

    Attributes:
        path: of the engine, which went with all that belongs to it, or of a single file.
        reason: one line.
        size: of all that was removed, in bytes.
    """

    path: Path
    reason: str
    size: int


class EngineCache:
    """A folder of engines.

    Looking for an engine checks it. What is damaged is told as a warning, removed, and counts as
    none; in a folder that cannot be written, it stays and counts as none.

    Args:
        folder: :func:`cache_folder` by default; made when something is first written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or cache_folder()).absolute()
        self._files = CacheFolder(self.folder)

    def get(self, recipe: Recipe) -> Entry | None:
        """The engine of exactly this recipe; its file matches its SHA-256.

        Raises:
            UserError: the folder cannot be read.
        """
        return next((e for e in self._intact([recipe.name]) if e.recipe == recipe), None)

    def find(self, recipe: Recipe) -> Entry | None:
        """The best engine that serves a recipe; its file matches its SHA-256.

        Static ones come first, then those of the smallest largest shape, of the same GPU and of
        the same builder options; so that of exactly this recipe, where there is one.

        Raises:
            UserError: the folder cannot be read.
        """

        def rank(entry: Entry) -> tuple[bool, int, bool, bool]:
            profile = entry.recipe.profile
            return (
                not profile.static,
                profile.batch.maximum * profile.height.maximum * profile.width.maximum,
                entry.recipe.gpu != recipe.gpu,
                entry.recipe.options != recipe.options,
            )

        serving = sorted((e for e in self.entries() if e.recipe.serves(recipe)), key=rank)
        return next(self._intact(entry.recipe.name for entry in serving), None)

    def difference(self, recipe: Recipe) -> str | None:
        """Why no engine of the same network serves a recipe, in one line.

        None where one does, and where there is none of the same graph, precision and flavour.
        """
        akin = [entry.recipe for entry in self.entries() if entry.recipe.akin(recipe)]
        reasons = min((mine.differences(recipe) for mine in akin), key=len, default=[])
        return f"the nearest cached engine {' and '.join(reasons)}" if reasons else None

    def entries(self) -> list[Entry]:
        """All engines, in the order of their names. Their sizes are checked, their bytes not.

        Raises:
            UserError: the folder cannot be read.
        """
        return list(self._intact(self._files.names(), whole=False))

    def size(self) -> int:
        """Bytes of all files that the cache made."""
        return sum(file_size(path) for path in self._files.files())

    def kernels_path(self, entry: Entry, gpu: GpuIdentity) -> Path:
        """Where to keep the kernels that TensorRT-RTX compiled for an engine on a GPU."""
        return entry.path.with_suffix(f".{slug(str(gpu))}.kernels")

    def timing_path(self, recipe: Recipe) -> Path:
        """Where to keep what a build measured; builds for the same version and GPU share it."""
        measured_by = f"{recipe.flavour} {recipe.version} {recipe.gpu or recipe.hardware}"
        return self.folder / f"timing-{slug(measured_by)}.cache"

    @contextmanager
    def lock(self, recipe: Recipe) -> Iterator[None]:
        """Keep other processes and threads from building the engine of this recipe.

        Waits while another one holds the lock, and logs at once that it waits. The lock of a
        process that was killed is free. The thread that holds it may take it again.

        Raises:
            UserError: the folder cannot be written.
        """
        with self._files.writing():
            lock = self._files.lock(recipe.name)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                logger.info("waiting for another process (it holds %s): %s", lock.lock_file, recipe)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def put(
        self,
        recipe: Recipe,
        plan: bytes,
        facts: dict[str, Any],
        seconds: float,
        verifications: Sequence[Verification] = (),
    ) -> Entry:
        """Keep an engine, in place of an earlier one of the same recipe.

        Args:
            recipe: that it was built by.
            plan: what TensorRT built.
            facts: about the engine, JSON-ready.
            seconds: that the build took.
            verifications: that it passed.

        Raises:
            UserError: the folder cannot be written or the disk is full; nothing is left of it, and
                an earlier engine stays where the new one did not fit beside it.
        """
        path = self._files.engine(recipe.name)
        entry = Entry.new(path, recipe, plan, seconds, facts, tuple(verifications))
        sidecar = entry.to_json()
        with self.lock(recipe), self._files.writing(len(plan)):
            with atomic_write(path) as temporary:
                temporary.write_bytes(plan)
                # Nobody may see the new engine beside the sidecar of the earlier one.
                self._files.remove(recipe.name)
            try:
                with atomic_write(entry.sidecar) as temporary:
                    temporary.write_text(sidecar)
            except BaseException:
                with suppress(OSError):
                    path.unlink()
                raise
        return entry

    def record(self, entry: Entry, verification: Verification) -> Entry:
        """Add a verification to an engine, in place of an earlier one on the same GPU.

        Where it cannot be kept, a warning says why, and the next run verifies again.
        """
        verified = entry.verified_by(verification)
        try:
            with self._files.held(entry.recipe.name, CHANGE_WAIT_SECONDS):
                # Another process may have recorded its own since the entry was read.
                current = Entry.load(entry.sidecar)
                if current is None or current.sha256 != entry.sha256:
                    raise UserError("it was removed or replaced meanwhile")
                verified = current.verified_by(verification)
                with atomic_write(entry.sidecar) as temporary:
                    temporary.write_text(verified.to_json())
        except (DamagedError, UserError) as error:
            logger.warning("%s: its verification is not kept: %s", entry.path, error)
        return verified

    def discard(self, entry: Entry) -> None:
        """Remove an engine, unless another one has taken its place.

        Where it cannot be removed, a warning says why.
        """
        try:
            with self._files.held(entry.recipe.name, CHANGE_WAIT_SECONDS):
                with suppress(DamagedError):
                    current = Entry.load(entry.sidecar)
                    if current and current.sha256 != entry.sha256:
                        return
                self._files.remove(entry.recipe.name)
        except UserError as error:
            logger.warning("%s: is not removed: %s", entry.path, error)

    def prune(self, unwanted: Callable[[Entry], str | None] | None = None) -> list[Removed]:
        """Remove what nobody can use: damaged and unfinished files, other formats of the cache.

        What another process works on stays, and an INFO message names it.

        Args:
            unwanted: gives the reason for which an engine is to be removed too, or None.

        Raises:
            UserError: the folder cannot be read or written.
        """
        removed = []
        for name in self._files.names():
            try:
                with self._files.held(name):
                    removed += self._prune(name, unwanted)
            except BusyError as error:
                logger.info("%s: stays, %s", self._files.engine(name), error)
        timings = {self.timing_path(entry.recipe) for entry in self.entries()}
        with self._files.writing():
            for path in self._files.files():
                if TIMING.fullmatch(path.name) and path not in timings:
                    removed.append(Removed(path, "no engine is left that it served", delete(path)))
            left = self._files.remove_abandoned()
        return removed + [Removed(path, UNFINISHED, size) for path, size in left]

    def _prune(self, name: str, unwanted: Callable[[Entry], str | None] | None) -> list[Removed]:
        """Prune the files of a name, whose lock is held."""
        left = self._files.remove_unfinished(name)
        removed = [Removed(path, UNFINISHED, size) for path, size in left]
        path = self._files.engine(name)
        try:
            entry = Entry.load(self._files.sidecar(name))
            if entry is None:
                reason: str | None = "has no sidecar: it was not finished"
            else:
                reason = entry.damage() or (unwanted(entry) if unwanted else None)
        except DamagedError as error:
            reason = str(error)
        except OSError as error:
            reason = None
            logger.warning("%s: stays, it cannot be read (%s)", path, error.strerror)
        if reason:
            if size := self._files.remove(name):
                removed.append(Removed(path, reason, size))
            # Who waits for the lock notices that its file is gone, and makes it anew.
            delete(self._files.lock_path(name))
        return removed

    def _intact(self, names: Iterable[str], whole: bool = True) -> Iterator[Entry]:
        """The entries of some names that are not damaged; those that are get removed."""
        for name in names:
            try:
                entry = Entry.load(self._files.sidecar(name))
                fault = entry.damage(whole) if entry else None
            except OtherFormatError:
                continue
            except DamagedError as error:
                entry, fault = None, str(error)
            except OSError as error:
                entry, fault = None, None
                path = self._files.engine(name)
                logger.warning("%s: not used, it cannot be read (%s)", path, error.strerror)
            if fault:
                self._heal(name, fault)
            elif entry:
                yield entry

    def _heal(self, name: str, fault: str) -> None:
        """Remove a damaged entry, unless another process works on it or has replaced it."""
        path = self._files.engine(name)
        try:
            with self._files.held(name):
                with suppress(DamagedError):
                    entry = Entry.load(self._files.sidecar(name))
                    if entry is None or entry.damage() is None:
                        return
                self._files.remove(name)
        except BusyError as error:
            # Seen halfway through its removal or replacement, or damaged: the next look tells.
            logger.info("%s: is not used, %s", path, error)
        except UserError as error:
            logger.warning("%s: %s; it is not used, and stays: %s", path, fault, error)
        else:
            logger.warning("%s: %s; it was removed", path, fault)


def slug(words: str) -> str:
    """Words as a part of a file name: "RTX 4090 (sm89)" is rtx-4090-sm89."""
    return re.sub("[^a-z0-9]+", "-", words.lower()).strip("-")
