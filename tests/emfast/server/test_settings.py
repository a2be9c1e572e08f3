from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from emfast.cli.serve import serve
from emfast.server.run import listen
from emfast.server.settings import Settings
from engines.errors import UserError

app = typer.Typer()
app.command()(serve)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 can be reached from other machines; give a token"),
        ({"host": "::"}, "give a token"),
        ({"host": "em.example"}, "give a token"),
        ({"token": ""}, "the token is empty"),
        ({"token": "schlüssel"}, "give ASCII"),
        ({"workers": 0}, "--workers 0: at least 1"),
        ({"max_pixels": 0}, "--max-pixels 0: at least 1"),
        ({"client_timeout": 0}, "--client-timeout 0"),
        ({"max_wait": -0.001}, "--max-wait-ms -1"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings(**wrong)


def test_loopback_needs_no_token() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        Settings(host=host)
    Settings(host="0.0.0.0", token="secret")


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1 port {port}: cannot listen there"):
            listen("127.0.0.1", port)


def test_the_command_refuses_before_it_serves(tmp_path: Path) -> None:
    for options, message in (
        (["--host", "0.0.0.0"], "give a token"),
        (["--model", str(tmp_path)], "is not a bundle"),
        (["--engine", "abacus"], "unknown engine 'abacus'"),
    ):
        result = CliRunner().invoke(app, ["--port", "0", *options])
        assert isinstance(result.exception, UserError)
        assert message in str(result.exception)
