"""Python code in a process of its own, so that a crash in a C++ library is an answer too.

:func:`ask` starts ``python -m MODULE ARGUMENTS`` and reads one JSON value; the module answers by
calling :func:`answer` when it is run.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ANSI = re.compile(r"\x1b\[[0-9;]*m")
OWN_ENVIRONMENT = "PYTHONPATH"


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        value: the JSON value; None if the process failed.
        failure: in one line, why there is no value: the exception, the signal or the timeout.
        log: what the process and its libraries printed, without colours.
    """

    value: Any
    failure: str | None
    log: str


def ask(module: str, *arguments: str, timeout: float) -> Answer:
    """Run a module with this interpreter and the modules that this process finds.

    Args:
        module: that calls :func:`answer` when it is run.
        arguments: for it.
        timeout: in seconds, after which it is killed.
    """
    paths = [path or os.getcwd() for path in sys.path]
    try:
        done = subprocess.run(
            # -P: a file in the current folder must not stand in for a package.
            [sys.executable, "-P", "-m", module, *arguments],
            env={**os.environ, OWN_ENVIRONMENT: os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return Answer(None, f"gave no answer in {timeout:g} s", _text(error.stderr))
    log = _text(done.stderr)
    if done.stdout:
        # A crash while the process ends, after its answer, takes nothing back.
        return Answer(json.loads(done.stdout), None, log)
    if done.returncode < 0:
        return Answer(None, f"crashed ({_signal(-done.returncode)})", log)
    lines = [line for line in log.splitlines() if line.strip()]
    return Answer(None, lines[-1].strip() if lines else f"ended with code {done.returncode}", log)


def answer(function: Callable[[list[str]], Any]) -> None:
    """Print what ``function`` makes of the arguments; all else that is printed is the log."""
    sys.stdout.flush()
    channel = os.dup(1)
    os.dup2(2, 1)  # what C++ libraries print must not get into the answer
    value = function(sys.argv[1:])
    with os.fdopen(channel, "w", encoding="utf-8") as out:
        json.dump(value, out)


def _text(raw: bytes | None) -> str:
    return ANSI.sub("", (raw or b"").decode("utf-8", "replace"))


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
