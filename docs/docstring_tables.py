"""An extension of griffe (mkdocs.yml): columns in docstrings, `name   what it is`, become tables of the API pages."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROW = re.compile(r"^(\S+(?: \S+){0,5}) {2,}(\S.*)$")


def with_tables(text: str) -> str:
    """The docstring with each paragraph of columns as a Markdown table. Indented lines continue a row."""
    return "\n\n".join(table(paragraph) or paragraph for paragraph in text.split("\n\n"))


def table(paragraph: str) -> str | None:
    """The table of a paragraph whose every line is a row of two columns or continues one, else None."""
    rows: list[list[str]] = []
    for line in paragraph.splitlines():
        if match := ROW.match(line):
            rows.append([match[1], match[2]])
        elif rows and line.startswith("  "):
            rows[-1][1] += " " + line.strip()
        else:
            return None
    cells = [f"| `{name}` | {meaning.replace('|', chr(92) + '|')} |" for name, meaning in rows]
    return "\n".join(["| | |", "|---|---|", *cells]) if rows else None


class DocstringTables(griffe.Extension):
    """Rewrites the docstrings of all objects."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every object that was loaded."""
        if obj.docstring:
            obj.docstring.value = with_tables(obj.docstring.value)
