"""``emfast doctor``: what this machine has and what would run."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test",
            help="Also build, run and verify every engine that can run here, on both bundles.",
        ),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the facts as JSON instead of tables.")
    ] = False,
) -> None:
    """Tell what this machine has, what would run on it and why, and what is to be mended.

    Everything is tried, not merely listed. Nothing is installed or fetched. Exit code 1: nothing
    can run here, or an engine failed the self-test.

    Example: emfast doctor --self-test
    """
    from emfast.doctor.facts import examine
    from emfast.doctor.report import report, self_test_table, to_json
    from emfast.doctor.self_test import self_test as run_self_test
    from emfast.doctor.table import console, facts_table, telling

    with telling() as tell:
        facts = examine(tell)
        result = run_self_test(facts.bundles, tell) if self_test else None
    if json:
        typer.echo(to_json(facts, result))
    else:
        out = console()
        out.print(facts_table(facts))
        if result is not None:
            out.print(self_test_table(result))
            out.print("\nFor a bug report:\n")
            out.print(report(facts, result), soft_wrap=True, highlight=False)
    raise typer.Exit(0 if facts.runs and (result is None or result.passed) else 1)
