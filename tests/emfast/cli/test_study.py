from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from emfast.cli.study import study
from emfast.data.sample import read_sample
from emfast.study.parts import write_slices
from engines.errors import UserError

app = typer.Typer()
app.command()(study)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "fast"], "unknown preset 'fast'; accepted: default, paper, cpu"),
        (["--preset", "cpu", "--smoke"], "leave out --preset"),
        (["--rows", "1,x"], "row 'x'"),
        (["--arms", "real,fake"], "unknown arm 'fake'"),
        (["--test", "0"], "no slices are left"),
        (["--test", "3"], "there is no slice 3"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    write_slices(read_sample(), [0], tmp_path / "stack")
    arguments = [str(tmp_path / "stack"), "--out", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()
