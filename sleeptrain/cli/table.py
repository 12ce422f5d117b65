"""Tables for the terminal; as wide as needed when the output goes to a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

PIPED = 160
"""Columns where there is no terminal to ask."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows of plain text under their columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else PIPED).print(table)
