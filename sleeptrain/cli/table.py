"""Tables on standard output, as wide as the terminal, or of a fixed width if the output is a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

PIPED = 160
"""Width in columns without a terminal."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of plain text under their column names."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else PIPED).print(table)
