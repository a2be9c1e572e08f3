"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engines.errors import UserError


@contextmanager
def atomic_write(path: Path, writer: str = "") -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; rename it to ``path`` on success.

    The temporary name keeps the suffix, from which many writers tell the format. It is removed
    when the block raises.

    Args:
        path: to write.
        writer: a word for the temporary name, where machines that share a folder may write the
            same file: their process ids do not tell them apart.

    Raises:
        UserError: the folder is missing or not writable, or the disk is full.
    """
    name = f".{path.stem}.{writer}.{os.getpid()}" if writer else f".{path.stem}.{os.getpid()}"
    temporary = path.with_name(f"{name}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove what :func:`atomic_write` left in a folder when its process was killed."""
    for path in folder.glob(".*.tmp*"):
        if path.is_file():
            path.unlink()


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``out`` to fill; rename it to ``out`` on success.

    Missing parents of ``out`` are made. The temporary folder is removed when the block raises.

    Raises:
        UserError: ``out`` holds files already, or cannot be written.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; name another --out, or remove it first")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
