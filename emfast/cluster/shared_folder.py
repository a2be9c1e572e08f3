"""Whether all workers write to the folder that the user named: checked with a file."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from engines.errors import UserError

# Network file systems show a new file to other machines after a while.
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Token:
    """A file that the run which shares out the work wrote into the folder.

    Attributes:
        path: absolute.
        text: that only this file holds.
        patience: seconds that a worker waits for it.
    """

    path: Path
    text: str
    patience: float = PATIENCE_SECONDS

    def check(self, host: str) -> None:
        """Look for the file from a worker.

        Args:
            host: of the worker.

        Raises:
            UserError: it is not there, so that ``host`` sees another folder or none.
        """
        start = time.monotonic()
        while not self._seen():
            if time.monotonic() - start > self.patience:
                raise UserError(
                    f"{self.path.parent}: {host} does not see this folder as the machine does "
                    "where the command was given; give an --out on a file system that all "
                    "machines of the cluster share, under the same path"
                )
            time.sleep(0.5)
        if not os.access(self.path.parent, os.W_OK | os.X_OK):
            raise UserError(f"{self.path.parent}: {host} may not write to it")

    def _seen(self) -> bool:
        try:
            return self.path.read_text() == self.text
        except (OSError, UnicodeDecodeError):
            return False


@contextmanager
def shared_folder(out: Path, shards: int) -> Iterator[Token]:
    """Put the token into a folder, which is made where it is missing, for the length of the block.

    A folder that was made and in which nothing was written is removed again.

    Args:
        out: absolute path.
        shards: into which the work is cut.

    Raises:
        UserError: the folder cannot be written.
    """
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for left in out.glob(".job.0-of-*.tmp"):
            left.unlink(missing_ok=True)
        # Named as a file that "shard 0" of a set is writing: the other shards leave it alone, and
        # a later run removes it if this one was killed.
        token = Token(out / f".job.0-of-{shards}.{os.getpid()}.tmp", secrets.token_hex(16))
        token.path.write_text(token.text)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from None
    try:
        yield token
    finally:
        with suppress(OSError):
            token.path.unlink(missing_ok=True)
            if made:
                out.rmdir()
