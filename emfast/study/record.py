"""Results of a study's stages: each a JSON file that appears whole when its stage is done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.errors import UserError
from engines.files import atomic_write

SETTINGS = "settings.json"


def stage(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a stage came to; it is worked on only where its result is not there.

    Args:
        path: of the result.
        work: does the stage, goes on where it was killed, and returns the result, JSON-ready.
    """
    found = read_result(path)
    if found is not None:
        return found
    start = time.monotonic()
    facts = work()
    # A training tells how long it took in all; others count since they were last taken up.
    result = {"seconds": time.monotonic() - start, **facts}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return result


def read_result(path: Path) -> dict[str, Any] | None:
    """A result, or None where there is none yet."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it to run it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: is damaged; remove it to run it again")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


def open_study(folder: Path, record: dict[str, Any]) -> None:
    """Begin a study in a folder, or go on with the one that it holds.

    Args:
        folder: new, empty or of the same study.
        record: settings and data, JSON-ready.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    path = folder / SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists() and any(p.name[0] != "." for p in folder.iterdir()):
            raise UserError(f"{folder}: holds files but no study; give another --out")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    then = read_result(path)
    if then is None:
        write_json(path, record)
        return
    changed = list(_differences(then, record))
    if changed:
        raise UserError(
            f"{folder} holds a study with other settings ({'; '.join(changed)}); give the same "
            "ones or another --out"
        )


def _differences(then: Any, now: Any, name: str = "") -> list[str]:
    """What differs, in words."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [
            text
            for key in dict.fromkeys((*then, *now))
            for text in _differences(then.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if then == now else [f"{name} was {then}, is {now}"]
