"""Pages of tables and charts, written as one self-contained HTML file and as Markdown with its pictures beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from sleeptrain.errors import UserError
from sleeptrain.study.chart import Chart, draw_svg

NONE = "–"
"""Cell of a value that does not exist."""
STYLE = """\
body { font: 15px/1.45 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #111; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; display: block; overflow-x: auto }
th, td { border: 1px solid #bbb; padding: .2rem .5rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { background: #eee } img { max-width: 100% } code { font-size: 13px }
@media print { table { overflow: visible } img, table { break-inside: avoid } }"""


POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">"""
"""Browsers refuse to load anything or run a script for a page that says so."""


@dataclass(frozen=True)
class TextTable:
    """Rows of plain text under their column names."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class PageSection:
    """A part of a page with a heading: paragraphs of plain text, tables and charts, in this order or mixed."""

    title: str
    parts: Sequence[str | TextTable | Chart]


@dataclass(frozen=True)
class Page:
    """A title, what the page is about, and its sections."""

    title: str
    about: str
    sections: Sequence[PageSection]

    @property
    def charts(self) -> list[Chart]:
        """All charts of the page, in their order."""
        return [part for passage in self.sections for part in passage.parts if isinstance(part, Chart)]


def number(value: float | None, form: str = "{:.4g}") -> str:
    """A number as the cell of a table."""
    return NONE if value is None else form.format(value)


def estimate(mean: float | None, interval: tuple[float, float] | None, form: str = "{:.4g}") -> str:
    """A mean with its interval in brackets as the cell of a table."""
    bounds = f" [{form.format(interval[0])}, {form.format(interval[1])}]" if interval and mean is not None else ""
    return number(mean, form) + bounds


def to_html(page: Page, pictures: Sequence[str]) -> str:
    """The page as one HTML file without a script and without anything to load; `pictures` are the SVG texts of its charts."""
    left = iter(pictures)
    body = [f"<h1>{escape(page.title)}</h1>", f"<p>{escape(page.about)}</p>"]
    for passage in page.sections:
        body.append(f"<h2>{escape(passage.title)}</h2>")
        for part in passage.parts:
            if isinstance(part, Chart):
                # As an image each picture keeps its identifiers to itself.
                data = base64.b64encode(next(left).encode()).decode()
                body.append(f'<p><img alt="{escape(part.title)}" src="data:image/svg+xml;base64,{data}"></p>')
            elif isinstance(part, TextTable):
                body.append(_html_table(part))
            else:
                body.append(f"<p>{escape(part)}</p>")
    head = f'<meta charset="utf-8">{POLICY}<title>{escape(page.title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style>'
    return "\n".join([f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>', *body, "</body></html>", ""])


def _html_table(table: TextTable) -> str:
    rows = [("th", table.columns), *(("td", row) for row in table.rows)]
    lines = ["".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) for tag, cells in rows]
    return "\n".join(["<table>", *(f"<tr>{line}</tr>" for line in lines), "</table>"])


def to_markdown(page: Page, names: Sequence[str]) -> str:
    """The page as Markdown; `names` are the files of its charts' pictures, relative to it."""
    left = iter(names)
    blocks = [f"# {page.title}", page.about]
    for passage in page.sections:
        blocks.append(f"## {passage.title}")
        for part in passage.parts:
            if isinstance(part, Chart):
                blocks.append(f"![{part.title}]({next(left)})")
            elif isinstance(part, TextTable):
                lines = [part.columns, ["---"] * len(part.columns), *part.rows]
                blocks.append("\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in lines))
            else:
                blocks.append(part)
    return "\n\n".join(blocks) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def write_page(page: Page, out: Path) -> list[Path]:
    """Write the page to the HTML file `out`, and as Markdown with its pictures beside it; return the two files.

    Pictures of an earlier page of that name are removed. Raises UserError where a file cannot be written.
    """
    pictures = [draw_svg(chart) for chart in page.charts]
    names = [f"{out.stem}-{place}.svg" for place in range(1, len(pictures) + 1)]
    markdown = out.with_suffix(".md")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for old in out.parent.glob(f"{out.stem}-*.svg"):
            if old.stem.removeprefix(f"{out.stem}-").isdecimal():
                old.unlink()
        for name, picture in zip(names, pictures, strict=True):
            (out.parent / name).write_text(picture, encoding="utf-8")
        markdown.write_text(to_markdown(page, names), encoding="utf-8")
        out.write_text(to_html(page, pictures), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); name another file") from None
    return [out, markdown]
