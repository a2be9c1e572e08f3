"""The ``emfast`` command."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from emfast import __version__
from emfast.cli.benchmark import app as benchmark_app
from emfast.cli.data import app as data_app
from emfast.cli.doctor import doctor
from emfast.cli.engines import app as engines_app
from emfast.cli.evaluate import evaluate
from emfast.cli.export import export
from emfast.cli.generate import generate
from emfast.cli.pack import pack
from emfast.cli.report import report
from emfast.cli.segment import segment
from emfast.cli.select import select
from emfast.cli.serve import serve
from emfast.cli.study import study
from emfast.cli.train import app as train_app
from engines.errors import UserError

app = typer.Typer(
    name="emfast",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"emfast {__version__}")
        raise typer.Exit


@app.callback()
def callback(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Labelled synthetic EM images and fast segmentation of mitochondria.

    Example: emfast generate --count 4 --out synthetic
    """


app.command()(generate)
app.command()(select)
app.command()(pack)
app.command()(segment)
app.command()(serve)
app.command()(evaluate)
app.command()(report)
app.command()(study)
app.command()(export)
app.command()(doctor)
app.add_typer(train_app, name="train")
app.add_typer(data_app, name="data")
app.add_typer(engines_app, name="engines")
app.add_typer(benchmark_app, name="benchmark")


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 1."""
    _show_messages()
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _show_messages() -> None:
    """Print what the packages tell on the way, such as the building of an engine."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for package in ("emfast", "engines", "export"):
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False
