from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from emfast.cli.generate import generate
from emfast.cli.select import select
from engines.errors import UserError
from tests.emfast.selection.small import write_small

app = typer.Typer()
app.command()(select)
app.command()(generate)


def run(*arguments: str) -> str:
    return CliRunner().invoke(app, arguments, catch_exceptions=False).output


def test_select_tells_what_it_kept(tmp_path: Path) -> None:
    small = write_small(tmp_path)
    command = ["select", str(small.drawn), "--real", str(small.real)]
    command += ["--segmenter", str(small.segmenter), "--engine", "onnxruntime-cpu"]
    command += ["--agreement", "0.1", "--best", "0.5", "--repair"]
    told = run(*command, "--out", str(tmp_path / "out"))
    values = json.loads((tmp_path / "out/selection.json").read_text())
    assert f"{values['accepted']} images kept, {20 - values['accepted']} rejected" in told
    assert f"not among the best: {values['reasons']['rank']}" in told
    assert f"{values['repaired']} masks repaired" in told
    assert values["command"].endswith(
        "--agreement 0.1 --best 0.5 --repair --segmenter SEGMENTER --engine onnxruntime-cpu "
        "--precision fp32"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--real", "r"], "belong to --keep-until"),
        (["--keep-until", "3"], "needs --real"),
        (["--keep-until", "3", "--real", "r", "--count", "4"], "leave out --count and --shard"),
        (["--keep-until", "3", "--real", "r", "--shard", "1/2"], "leave out --count and --shard"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run("generate", "--out", str(tmp_path / "out"), *options)
    assert not (tmp_path / "out").exists()
