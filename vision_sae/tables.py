"""Tables as text: plain aligned columns in a pipe, fitted to the width of a terminal."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

_UNLIMITED = 100_000
"""Width in characters when the output is no terminal: no cell is wrapped."""


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    rule: bool = True,
    plain: bool = False,
) -> str:
    """Aligned columns, two spaces apart; a rule of dashes under the header where ``rule`` is set.

    Columns whose position is in ``right`` are aligned to the right. Where standard output is a
    terminal, the header is bold and long cells are wrapped to the terminal's width; elsewhere, and
    where ``plain`` is set, each row is one line without control characters.
    """
    from rich.console import Console, Group, RenderableType
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty() and not plain
    console = Console(
        width=None if terminal else _UNLIMITED, color_system="auto" if terminal else None
    )
    drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for position, name in enumerate(header):
        heading: RenderableType = Text(name)
        if rule:
            heading = Group(heading, Rule(characters="-", style=""))
        drawn.add_column(heading, justify="right" if position in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))
    with console.capture() as captured:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
