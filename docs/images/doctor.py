"""Draw what ``emfast doctor`` says in this environment: python docs/images/doctor.py OUT.svg"""

from __future__ import annotations

import re
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from emfast.doctor.facts import examine
from emfast.doctor.table import facts_table

WIDTH = 104
FONT = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
THEME = TerminalTheme(
    (255, 255, 255),
    (30, 30, 30),
    [
        (30, 30, 30),
        (190, 30, 45),
        (20, 125, 60),
        (150, 100, 0),
        (30, 80, 170),
        (130, 50, 140),
        (0, 110, 125),
        (90, 90, 90),
    ],
)


def main() -> None:
    """Examine this machine and write the picture."""
    console = Console(width=WIDTH, record=True, file=StringIO(), force_terminal=True)
    console.print("$ emfast doctor\n", style="dim", highlight=False)
    console.print(facts_table(examine(print)))
    svg = console.export_svg(title="", theme=THEME, unique_id="doctor")
    # rich would have readers load a font from elsewhere.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code, monospace", FONT)
    svg = "\n".join(line.rstrip() for line in svg.splitlines() if line.strip())
    Path(sys.argv[1]).write_text(svg + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
