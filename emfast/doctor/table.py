"""The facts for people, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from emfast.doctor.facts import OTHERS, BundleFacts, CacheFacts, Choice, Facts
from engines.diagnosis import Problem
from engines.probe import Module

# Where the output is no terminal, which has a width of its own.
WIDTH = 110
STYLES = {
    "ok": "green",
    "taken": "bold green",
    "passed": "green",
    "no": "dim",
    "none": "dim",
    "problem": "bold red",
    "failed": "bold red",
}
INDENT = "  "
MEGABYTE = 1e6
GIGABYTE = 1e9
# Title of each module, and what brings it.
MODULES = {
    "onnxruntime": ("onnxruntime", "emfast[cpu] or emfast[gpu]"),
    "MNN": ("MNN", "emfast[mnn]"),
    "openvino": ("OpenVINO", "emfast[openvino]"),
    "tensorrt": ("TensorRT", "emfast[gpu]"),
    "tensorrt_rtx": ("TensorRT-RTX", "emfast[rtx]"),
    "cuda.bindings.runtime": ("CUDA for Python", "emfast[gpu] and [rtx]"),
    "numpy": ("numpy", "emfast"),
}
PARTS = ("-bindings", "-libs")
# Of a manifest's SHA-256, for the eye.
DIGITS = 12

# What a row is about, a word of how it is, and details.
Row = tuple[str, str, str | Text]


def console() -> Console:
    """Standard output; wide where it goes to a file."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=WIDTH)


@contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """Give a function that says what is going on, on standard error."""
    err = Console(stderr=True)
    if not err.is_terminal:
        yield lambda text: err.print(text, highlight=False, markup=False, soft_wrap=True)
        return
    with err.status("") as status:
        yield status.update


def facts_table(facts: Facts) -> RenderableType:
    """All facts, in sections of rows."""
    rows: dict[str, Sequence[Row]] = {
        "This machine": [("emfast", "ok", versions(facts)), *gpu_rows(facts)],
        "Packages": [
            _module_row(facts, module)
            for module in facts.modules
            # Said only where it is amiss: everybody has it.
            if module.name != "numpy" or module.version is None
        ],
        "Providers of onnxruntime, each tried on a small network": [
            (p.name, "ok" if p.works else "no", p.reason or "ran, and its numbers are right")
            for p in facts.providers
        ],
        "Shipped bundles": [_bundle_row(bundle) for bundle in facts.bundles],
        "What --engine auto takes, the fastest first": _choice_rows(facts.choices),
        "Cache of TensorRT engines": [_cache_row(facts.cache)],
        "To mend": [_problem_row(i, problem) for i, problem in enumerate(facts.problems, 1)],
    }
    return Group(*sections(rows), verdict(facts.verdict, facts.runs))


def verdict(text: str, good: bool) -> Text:
    """The last line of a table."""
    return Text(f"Verdict: {text}", style="bold green" if good else "bold red")


def sections(rows: Mapping[str, Sequence[Row]]) -> list[RenderableType]:
    """A table for each title that has rows, with columns that line up from one to the next."""
    everything = [row for section in rows.values() for row in section]
    widths = [max((len(row[column]) for row in everything), default=0) for column in (0, 1)]
    parts: list[RenderableType] = []
    for title, section in rows.items():
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=widths[0] + len(INDENT))
        table.add_column(min_width=widths[1])
        table.add_column(ratio=1, overflow="fold")
        for name, word, details in section:
            text = details if isinstance(details, Text) else Text(details)
            text.style = "dim" if STYLES.get(word) == "dim" else ""
            table.add_row(f"{INDENT}{name}", Text(word, style=STYLES.get(word, "")), text)
        if section:
            parts += [Text(title, style="bold"), table, Text()]
    return parts


def versions(facts: Facts) -> str:
    """Of emfast, Python and the operating system."""
    return f"{facts.emfast}, Python {facts.python}, {facts.platform}"


def gpu_rows(facts: Facts) -> list[tuple[str, str, str]]:
    """A row for each GPU, or one that says why there is none."""
    if facts.gpus.reason is not None:
        return [("GPU", "none", facts.gpus.reason)]
    return [
        (
            f"GPU {gpu['index']}",
            "ok",
            f"{gpu['name']}, compute capability {gpu['compute_capability']}, "
            f"{_memory(gpu)}driver {gpu['driver']}, CUDA up to {gpu['cuda']}",
        )
        for gpu in facts.gpus.gpus
    ]


def _memory(gpu: dict[str, Any]) -> str:
    if not gpu["memory"]:
        return "memory shared with the CPU, "
    return f"{gpu['memory'] / GIGABYTE:.1f} GB, {gpu['free'] / GIGABYTE:.1f} GB free, "


def _module_row(facts: Facts, module: Module) -> Row:
    title, source = MODULES[module.name]
    packages = ", ".join(f"{name} {module.packages[name]}" for name in _main_packages(module))
    if module.version is None and module.reason == "not installed":
        on_cpu = module.name in ("onnxruntime", *OTHERS)
        use = "" if facts.gpus.gpus or on_cpu else "; only a GPU needs it"
        return title, "no", f"not installed{use} (part of {source})"
    if module.version is None:
        return title, "problem", f"{packages}: {home(module.reason or '')}"
    details = [packages or f"{module.name} {module.version}, of no known package"]
    if module.facts.get("cuda"):
        details.append(f"built for CUDA {module.facts['cuda']}")
    if module.facts.get("device"):
        details.append(f"reaches {module.facts['device']}")
    elif "device" in module.facts:
        reason = "there is none" if facts.gpus.reason else module.facts["reason"]
        details.append(f"reaches no GPU: {reason}")
    made_for = module.facts.get("compute_capabilities", [])
    if made_for:
        details.append(f"made for compute capability {', '.join(made_for)}")
    misfits = [gpu for gpu in facts.gpus.gpus if gpu["compute_capability"] not in made_for]
    if made_for and misfits:
        details[-1] += f", not for {misfits[0]['name']} ({misfits[0]['compute_capability']})"
    fits = not made_for or not misfits or len(misfits) < len(facts.gpus.gpus)
    return title, "ok" if fits else "no", ", ".join(details)


def _main_packages(module: Module) -> list[str]:
    """The package that brings a module, without its parts of the same version."""
    names = sorted(module.packages, key=len)
    whole = names[:1]
    return whole + [
        name
        for name in names[1:]
        if not name.endswith(PARTS) or module.packages[name] != module.packages[whole[0]]
    ]


def _bundle_row(bundle: BundleFacts) -> Row:
    if bundle.reason is not None:
        return bundle.name, "problem", home(bundle.reason)
    digest = bundle.sha256["manifest.json"][:DIGITS]
    graphs = " and ".join(bundle.precisions)
    match = f"{len(bundle.sha256)} files match SHA-256 {digest}..."
    return bundle.name, "ok", f"{bundle.kind}, {graphs}; {match}"


def _choice_rows(choices: Sequence[Choice]) -> list[Row]:
    """A row for each engine, as auto tries them; bundles that fare alike share their rows."""
    groups: dict[tuple[str, ...], list[Choice]] = {}
    for choice in choices:
        groups.setdefault(choice.passed_over, []).append(choice)
    rows: list[Row] = []
    for passed_over, group in groups.items():
        only = f" ({_bundles(group)})" if len(groups) > 1 else ""
        for line in passed_over:
            name, _, reason = line.partition(" passed over: ")
            rows.append((name, "no", f"{home(reason)}{only}"))
        takers: dict[str, list[Choice]] = {}
        for choice in group:
            takers.setdefault(choice.engine["engine"] if choice.engine else "none", []).append(
                choice
            )
        rows += [_taken_row(name, choices) for name, choices in takers.items()]
    return rows


def _taken_row(name: str, choices: Sequence[Choice]) -> Row:
    info = choices[0].engine
    if info is not None:
        how = f"{info['version']}, {info['precision']}, {info['device']}"
        return name, "taken", f"for {_bundles(choices)}: {how}"
    told = bool(choices[0].passed_over)
    reason = "" if told else f": {home(choices[0].reason or '')}"
    return name, "problem", f"nothing runs {_bundles(choices)}{reason}"


def _bundles(choices: Sequence[Choice]) -> str:
    return " and ".join(choice.bundle for choice in choices)


def _cache_row(cache: CacheFacts) -> Row:
    if cache.reason is not None:
        return "folder", "problem", home(cache.reason)
    count = f"{cache.entries} engine{'' if cache.entries == 1 else 's'}"
    return "folder", "ok", f"{home(cache.folder)}, {count}, {cache.size / MEGABYTE:.1f} MB"


def _problem_row(number: int, problem: Problem) -> Row:
    text = Text.assemble((f"{problem.what}. ", "bold"), problem.why)
    for command in problem.commands:
        text.append(f"\n{command}", style="bold cyan")
    return str(number), "problem", text


def home(text: str) -> str:
    """Paths below the home folder with ~ in its place."""
    folder = Path.home()
    return text if folder == folder.parent else text.replace(f"{folder}/", "~/")
