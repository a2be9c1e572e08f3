"""The table of a study, as Markdown."""

from __future__ import annotations

from typing import Any

from emfast.progress import duration
from emfast.study.settings import ALL, ARMS, REAL

SMOKE = "**SMOKE RUN: a few iterations to try every branch. The numbers mean nothing.**"


def table(study: dict[str, Any]) -> str:
    """Everything that ``study.json`` says, for a reader."""
    smoke = [SMOKE, ""] if study["smoke"] else []
    return "\n".join(
        [
            "# Do synthetic images help?",
            "",
            *smoke,
            *_design(study),
            "",
            *_scores(study, "dice", "Dice", smoke),
            *_scores(study, "iou", "IoU", smoke),
            *_differences(study, smoke),
            *_sets(study),
            *_missing(study),
            *_hardware(study),
        ]
    )


def _design(study: dict[str, Any]) -> list[str]:
    data, settings = study["data"], study["settings"]
    segmenter = settings["segmenter"]
    crops = " and ".join(f"{batch} of {side} x {side}" for side, batch in segmenter["crops"])
    mixed = (
        "fixed tiles, each once an epoch"
        if settings["share"] is None
        else f"{100 * settings['share']:g} % of the crops synthetic where both are mixed"
    )
    kind = "its own slices, denoiser and set" if settings["redraw"] else "a segmenter's training"
    return [
        f"Dice and IoU are pooled over all pixels of slices {data['test']}; training saw none of "
        f"them and none within {data['gap']} slices. Row `{ALL}` is slices {data['pool']} "
        f"({data['pool_count']}); the other rows take slices spread evenly over those, and their "
        "denoiser, selecting segmenter and real tiles of the selection see no other.",
        "",
        f"Every cell: {segmenter['iterations']} optimizer steps in all, batches of {crops} "
        f"pixels, {mixed}; the last weights are scored, nothing is chosen by the test slices. "
        f"Each denoiser: {settings['denoiser']['iterations']} steps, {settings['images']} images, "
        f"`{settings['sampler']}`, {settings['steps']} steps. A seed stands for {kind}.",
    ]


def _scores(study: dict[str, Any], metric: str, title: str, smoke: list[str]) -> list[str]:
    found = {(e["row"], e["arm"]): e[metric] for e in study["summary"] if metric in e}
    if not found:
        return []
    lines = [
        f"## {title}",
        "",
        *smoke,
        "Mean and standard deviation over seeds, and how many.",
        "",
        "| real slices | " + " | ".join(ARMS.values()) + " |",
        "|---|" + "---:|" * len(ARMS),
    ]
    for row in dict.fromkeys(row for row, _ in found):
        texts = [_spread(found.get((row, arm))) for arm in ARMS]
        lines.append(f"| {_row(study, row)} | " + " | ".join(texts) + " |")
    return [*lines, ""]


def _differences(study: dict[str, Any], smoke: list[str]) -> list[str]:
    found = [e for e in study["summary"] if "dice_against_real" in e]
    if not found:
        return []
    tests = sum(e["dice_against_real"]["p"] is not None for e in found)
    lines = [
        f"## Against {ARMS[REAL]}",
        "",
        *smoke,
        "Difference of Dice from that of the arm `real` with the same seed: mean, 95 % interval, p "
        "of Student's paired t-test (two-sided), p of the exact sign-flip test and the smallest "
        "that so many pairs can give it. The t-test takes differences to be normal, which few "
        "seeds cannot show. The interval and p speak of other seeds, not of other test slices.",
    ]
    if tests > 1:
        lines[-1] += (
            f" {tests} comparisons: by Bonferroni, p below {0.05 / tests:.2g} for one to count at "
            "5 %."
        )
    lines += [
        "",
        "| real slices | arm | n | difference | 95 % interval | p | exact p | at least |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for entry in found:
        a = entry["dice_against_real"]
        interval = a["interval"]
        between = "" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"
        lines.append(
            f"| {_row(study, entry['row'])} | {ARMS[entry['arm']]} | {a['n']} | {a['mean']:+.4f} | "
            f"{between} | {_number(a['p'])} | {_number(a['exact'])} | {a['floor']:.3g} |"
        )
    return [*lines, ""]


def _sets(study: dict[str, Any]) -> list[str]:
    if not study["sets"]:
        return []
    lines = [
        "## Denoisers and sets",
        "",
        "| real slices | of | slices | denoiser | drawn | selected | engine |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for entry in study["sets"]:
        denoiser, drawn = entry.get("denoiser"), entry.get("drawn")
        selection = entry.get("selection")
        names = denoiser["slices"] if denoiser else []
        slices = ", ".join(names) if len(names) <= 5 else f"{names[0]} ... {names[-1]}"
        owner = entry["of"] if entry["of"].startswith("seed-") else "all seeds"
        lines.append(
            f"| {_row(study, entry['row'])} | {owner} | {slices} | "
            f"{duration(denoiser['seconds']) if denoiser else ''} | "
            f"{drawn['images'] if drawn else ''} | {selection['kept'] if selection else ''} | "
            f"{drawn['engine'] if drawn else ''} |"
        )
    return [*lines, ""]


def _missing(study: dict[str, Any]) -> list[str]:
    if not study["not_run"]:
        return []
    by_why: dict[tuple[str, str], list[str]] = {}
    for entry in study["not_run"]:
        by_why.setdefault((entry["row"], entry["why"]), []).append(ARMS[entry["arm"]])
    lines = []
    for (row, why), arms in by_why.items():
        which = "every arm" if len(arms) == len(ARMS) else "; ".join(arms)
        lines.append(f"- {_row(study, row)}, {which}: {why}")
    return ["## Not in the table", "", "By real slices:", "", *lines, ""]


def _hardware(study: dict[str, Any]) -> list[str]:
    trained = [cell for cell in study["cells"] if "hardware" in cell]
    machines = dict.fromkeys(
        f"{h['device']}, {h['threads']} threads, torch {h['torch']}"
        for h in (cell["hardware"] for cell in trained)
    )
    spent = sum(cell["seconds"] for cell in trained)
    return [
        "## How it was run",
        "",
        f"emfast {study['emfast']}; segmenters trained on {'; '.join(machines) or 'nothing yet'}; "
        f"{len(trained)} trainings, {duration(spent)} in all.",
        "",
        "```",
        study["command"],
        "```",
        "",
    ]


def _row(study: dict[str, Any], row: str) -> str:
    return f"{ALL} ({study['data']['pool_count']})" if row == ALL else row


def _spread(values: dict[str, Any] | None) -> str:
    if values is None:
        return ""
    deviation = values["deviation"]
    around = "" if deviation is None else f" ± {deviation:.4f}"
    return f"{values['mean']:.4f}{around} ({values['n']})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
