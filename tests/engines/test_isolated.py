from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.isolated import Answer, ask

Ask = Callable[[str], Answer]


@pytest.fixture
def ask_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Asks a module whose function has the body that is given."""

    def run(body: str) -> Answer:
        (tmp_path / "asked.py").write_text(
            "import os, signal, sys, time\n"
            "from engines.isolated import answer\n"
            f"def work(arguments):\n    {body}\n"
            "answer(work)\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        return ask("asked", "first", "second", timeout=20)

    return run


def test_an_answer_and_what_was_printed_are_kept_apart(ask_code: Ask) -> None:
    body = (
        r"os.write(1, b'\x1b[31mfrom C\x1b[m\n'); print('from Python'); return {'got': arguments}"
    )
    answer = ask_code(body)
    assert answer.value == {"got": ["first", "second"]}
    assert answer.failure is None
    assert answer.log.splitlines() == ["from C", "from Python"]


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)"),
        ("raise ValueError('bad luck')", "ValueError: bad luck"),
        ("os._exit(3)", "ended with code 3"),
    ],
)
def test_failures_are_told_in_a_line(ask_code: Ask, body: str, failure: str) -> None:
    answer = ask_code(body)
    assert (answer.value, answer.failure) == (None, failure)


def test_a_crash_after_the_answer_takes_nothing_back(ask_code: Ask) -> None:
    body = "import atexit; atexit.register(lambda: os.kill(os.getpid(), signal.SIGABRT)); return 5"
    assert ask_code(body).value == 5


def test_one_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert ask("hangs", timeout=1).failure == "gave no answer in 1 s"


def test_files_in_the_current_folder_are_not_taken_for_packages(
    ask_code: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "json.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(folder)
    assert ask_code("return 1").value == 1
