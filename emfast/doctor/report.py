"""The self-test for people, lines to paste into a bug report, and all of it as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from emfast.doctor.facts import Facts
from emfast.doctor.self_test import SelfTest, Trial
from emfast.doctor.table import STYLES, gpu_rows, home, sections, verdict, versions

# The measures of a trial, and how each is written.
MEASURES = {
    "maximum error": "{:.2g}",
    "mean error": "{:.2g}",
    "PSNR of the image": "{:.1f} dB",
    "Dice of the mask": "{:.4f}",
}
HEADER = ("engine", "bundle", "graph", "result", "opened in", "one run")
MEASURE_HEADER = ("max error", "mean error", "PSNR", "Dice")


def self_test_table(result: SelfTest) -> RenderableType:
    """The trials with their numbers."""
    ran = [trial for trial in result.trials if "run_seconds" in trial.facts]
    rest = {
        title: [(_name(t), word, home(t.reason or "")) for t in result.of(state)]
        for title, state, word in (
            ("Failed", "failed", "failed"),
            ("Not compared", "unchecked", ""),
            ("Cannot run here", "unavailable", "no"),
        )
    }
    return Group(
        Text("\nSelf-test: every engine that can run here, on every bundle", style="bold"),
        *(_numbers(ran) if ran else ()),
        *sections(rest),
        verdict(result.verdict, result.passed),
    )


def _numbers(trials: Sequence[Trial]) -> list[RenderableType]:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in HEADER[:4]:
        table.add_column(title, header_style="dim", no_wrap=True)
    for title in (*HEADER[4:], *MEASURE_HEADER):
        table.add_column(title, header_style="dim", justify="right")
    for trial in trials:
        facts, summary = trial.facts, trial.facts.get("summary", {})
        table.add_row(
            trial.engine,
            trial.bundle,
            trial.precision,
            Text(trial.state, style=STYLES.get(trial.state, "")),
            f"{facts['open_seconds']:.2f} s",
            f"{facts['run_seconds'] * 1000:.1f} ms",
            *(
                form.format(summary[name]) if name in summary else ""
                for name, form in MEASURES.items()
            ),
        )
    runs = dict.fromkeys(f"{trial.bundle} {trial.facts['run_of']}" for trial in trials)
    notes = (
        f"One run: {', '.join(runs)}. Errors are relative to the root mean square of the "
        "reference, onnxruntime-cpu in fp32, whose own row tells that it repeats itself."
    )
    return [table, Text(), Text(notes, style="dim"), Text()]


def report(facts: Facts, result: SelfTest) -> str:
    """What was found in plain lines, for a bug report."""
    packages = {k: v for module in facts.modules for k, v in module.packages.items()}
    lines = [
        f"emfast {versions(facts)}",
        *(f"GPU: {detail}" for _, _, detail in gpu_rows(facts)),
        f"packages: {', '.join(f'{name} {version}' for name, version in packages.items())}",
        *(f"problem: {problem.what}" for problem in facts.problems),
        *(
            f"auto, {c.bundle}: {_engine(c.engine) if c.engine else home(c.reason or '')}"
            for c in facts.choices
        ),
        *(_trial_line(trial) for trial in result.trials),
        result.verdict,
    ]
    return "\n".join(lines)


def to_json(facts: Facts, result: SelfTest | None) -> str:
    """All facts as JSON; docs/doctor.md describes the keys."""
    tested = None
    if result is not None:
        tested = {
            "passed": result.passed,
            "verdict": result.verdict,
            "trials": [trial.to_dict() for trial in result.trials],
        }
    return json.dumps({**facts.to_dict(), "self_test": tested}, indent=1, allow_nan=False)


def _engine(info: dict[str, str]) -> str:
    return f"{info['engine']} ({info['version']}), {info['precision']}, {info['device']}"


def _name(trial: Trial) -> str:
    return " ".join(part for part in (trial.engine, trial.bundle, trial.precision) if part)


def _trial_line(trial: Trial) -> str:
    facts = trial.facts
    parts = [] if trial.reason is None else [home(trial.reason)]
    if "run_seconds" in facts:
        parts.append(
            f"opened in {facts['open_seconds']:.2f} s, {facts['run_of']} in "
            f"{facts['run_seconds'] * 1000:.1f} ms"
        )
    summary = facts.get("summary", {})
    parts += [
        f"{name} {form.format(summary[name])}" for name, form in MEASURES.items() if name in summary
    ]
    return f"{_name(trial)}: {trial.state}, {', '.join(parts)}"
