"""What a library raises at a file that it cannot read, told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.errors import UserError


@contextmanager
def readable(source: Path | str) -> Iterator[None]:
    """Turn what a library raises at a damaged file into a :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{source}: may not be read") from None
    except Exception as error:  # a damaged file raises whatever its decoder raises
        reason = " ".join(str(error).split())
        raise UserError(f"{source}: cannot be read, truncated or damaged ({reason})") from None
