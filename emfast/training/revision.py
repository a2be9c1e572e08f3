"""Which code trains."""

from __future__ import annotations

import subprocess
from pathlib import Path

import emfast

CHECKOUT = Path(emfast.__file__).parents[1]


def revision() -> str:
    """emfast's version and, where it runs from a git checkout, the commit.

    "-dirty" follows the commit where tracked files were changed.
    """
    # site-packages may lie inside a checkout of something else.
    if not (CHECKOUT / ".git").exists():
        return emfast.__version__
    command = ["git", "-C", str(CHECKOUT), "describe"]
    command += ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return emfast.__version__
    return f"{emfast.__version__}, commit {done.stdout.strip()}"
