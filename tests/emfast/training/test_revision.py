from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import emfast
from emfast.training import revision
from emfast.training.revision import revision as tell

GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C")


def git(folder: Path, *arguments: str) -> str:
    command = [*GIT, str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_a_checkout_and_its_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revision, "CHECKOUT", tmp_path / "emfast")
    code = tmp_path / "emfast" / "code.py"
    code.parent.mkdir()
    code.write_text("1\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    # A package that lies in somebody else's checkout.
    assert tell() == emfast.__version__
    monkeypatch.setattr(revision, "CHECKOUT", tmp_path)
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert tell() == f"{emfast.__version__}, commit {commit}"
    git(tmp_path, "tag", "-a", "v1", "-m", "v1")
    assert tell() == f"{emfast.__version__}, commit {commit}"
    code.write_text("2\n")
    assert tell() == f"{emfast.__version__}, commit {commit}-dirty"


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(revision, "CHECKOUT", tmp_path)
    assert tell() == emfast.__version__
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tell() == emfast.__version__
