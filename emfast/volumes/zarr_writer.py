"""Writing Zarr chunk by chunk, so that a killed run can go on."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from emfast.volumes.axes import Layout, Pixels, shape_text
from emfast.volumes.library import load
from emfast.volumes.slabs import Slabs
from engines.errors import UserError

# What another process may take between the two renames that finish a volume. Longer, and it was
# killed between them.
FINISH_SECONDS = 5.0


@dataclass(frozen=True)
class ZarrLayout:
    """How an array is stored.

    Attributes:
        layout: its axes and shape.
        dataset: its path in the Zarr, "" where it is all there is.
        dtype: of its values.
        chunks: length of the chunks along each axis.
        shards: length of the shards along each axis, or None.
        zarr_format: 2 or 3.
        encoding: of the chunks' names.
        names: of the axes, in format 3.
        attributes: of the array.
        groups: attributes of the groups around it, by their path.
    """

    layout: Layout
    dataset: str
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    zarr_format: int
    encoding: Any
    names: tuple[str, ...] | None
    attributes: dict[str, Any]
    groups: dict[str, dict[str, Any]]


class ZarrWriter:
    """A Zarr of one array, which appears under its name when all of its chunks are stored.

    See :class:`~emfast.volumes.volume.VolumeWriter`. Until then it grows in a hidden folder beside
    it, ``.NAME.partial``, with an empty file for each slab of slices that is stored: chunks of
    zeros are not, so that their absence tells nothing. Several processes may write to it.

    Args:
        path: to write.
        stored: how.
        depth: slices of a slab; a multiple of the chunks' (or the shards') or, where a slab would
            not fit into memory, the chunks' own.
        resume: whether slabs that are stored already count.
    """

    resumable = True

    def __init__(self, path: Path, stored: ZarrLayout, depth: int, resume: bool) -> None:
        self.path, self.chunk = path, depth
        self._stored, self._resume = stored, resume
        self._partial = path.with_name(f".{path.name}.partial")
        slices = stored.layout.slices
        self._slabs = Slabs(slices, depth, self._store)
        self._starts = set(range(0, slices, depth))
        self._written: set[int] = set()

    def __enter__(self) -> Self:
        zarr = load("zarr", self.path)
        try:
            if not self._resume:
                shutil.rmtree(self._partial, ignore_errors=True)
            while not self._open(zarr):
                pass  # another process has finished the volume meanwhile
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def _open(self, zarr: Any) -> bool:
        """Take up what is there, or begin; False where another process moved it meanwhile."""
        if self._resume:
            self._await_finish()
            if self.path.exists() and not self._partial.exists():
                self._check(zarr, self.path)
                self._written = set(self._starts)
                return True
        if not self._partial.exists():
            self._make(zarr)
        try:
            self._array = self._check(zarr, self._partial / "zarr")
            self._written = self._marked()
        except (FileNotFoundError, UserError):
            if self._partial.exists():
                raise
            return False
        return True

    def _await_finish(self) -> None:
        """Wait while another process renames the volume; take up what one left that was killed."""
        deadline = time.monotonic() + FINISH_SECONDS
        while not self.path.exists() and not self._partial.exists():
            claimed = self._claimed()
            if claimed is None:
                return
            if time.monotonic() > deadline:
                with suppress(OSError):  # another process may do the same
                    claimed.rename(self._partial)
            time.sleep(0.01)

    def _claimed(self) -> Path | None:
        """The folder that a process which finishes the volume has made its own."""
        start, end = f".{self.path.name}.", ".done"
        for folder in self.path.parent.iterdir():
            name = folder.name
            if name.startswith(start) and name.endswith(end) and (folder / "zarr").exists():
                return folder
        return None

    def _make(self, zarr: Any) -> None:
        """The empty array, put in place as a whole: other processes may be about to do the same."""
        stored = self._stored
        temporary = self._partial.with_name(f"{self._partial.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "written").mkdir(parents=True)
        store = str(temporary / "zarr")
        if stored.dataset:
            zarr.open_group(store, mode="w", zarr_format=stored.zarr_format)
        for path, attributes in stored.groups.items():
            group = zarr.open_group(store, path=path, mode="a", zarr_format=stored.zarr_format)
            group.attrs.update(attributes)
        zarr.create_array(
            store,
            name=stored.dataset or None,
            shape=stored.layout.shape,
            dtype=stored.dtype,
            chunks=stored.chunks,
            shards=stored.shards,
            zarr_format=stored.zarr_format,
            chunk_key_encoding=stored.encoding,
            dimension_names=stored.names,
            attributes=stored.attributes,
            fill_value=0,
        )
        # An empty array shall not appear beside a volume that was finished while it was made.
        if not self._resume or not (self.path.exists() or self._claimed()):
            with suppress(OSError):
                temporary.rename(self._partial)
        shutil.rmtree(temporary, ignore_errors=True)

    def _check(self, zarr: Any, store: Path) -> Any:
        """The array of an earlier run, refused where it is another."""
        stored = self._stored
        try:
            array = zarr.open_array(str(store), path=stored.dataset, mode="r+")
            found = (array.shape, array.dtype, array.shards or array.chunks)
        except (ValueError, KeyError, FileNotFoundError):
            found = None
        if found != (stored.layout.shape, stored.dtype, stored.shards or stored.chunks):
            raise UserError(
                f"{store}: was left by another run, whose values are not {stored.dtype} in "
                f"{shape_text(stored.layout.shape)}; remove it, or name another --out"
            )
        return array

    def write(self, start: int, slices: Pixels) -> None:
        try:
            self._slabs.add(start, slices)
        except OSError as error:
            raise self._unwritable(error) from error

    def _store(self, start: int, slab: Pixels) -> None:
        layout = self._stored.layout
        values = layout.from_slices(slab.astype(self._stored.dtype, copy=False))
        self._array[layout.index(start, start + len(slab))] = values
        (self._partial / "written" / str(start)).touch()
        self._written.add(start)

    def written(self, start: int, stop: int) -> bool:
        first = start // self.chunk * self.chunk
        return self._written.issuperset(range(first, stop, self.chunk))

    def _marked(self) -> set[int]:
        return {int(file.name) for file in (self._partial / "written").iterdir()}

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is not None or not self._partial.exists():
            return
        if self._slabs.pending:
            raise ValueError(f"{self._slabs.pending} slices are not a whole chunk")
        try:
            # Where another process has put it in place meanwhile, there is nothing left to read.
            with suppress(FileNotFoundError):
                if self._marked() == self._starts:
                    self._finish()
        except OSError as error:
            raise self._unwritable(error) from error

    def _finish(self) -> None:
        # Of several processes that end at the same time, one can rename the folder.
        claimed = self._partial.with_name(f".{self.path.name}.{os.getpid()}.done")
        self._partial.rename(claimed)
        if self.path.exists():
            self.path.rename(claimed / "old")
        (claimed / "zarr").rename(self.path)
        shutil.rmtree(claimed, ignore_errors=True)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self.path}: cannot be written ({error.strerror or error})")
