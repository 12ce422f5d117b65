"""Reports of any runs: what the files hold, that nothing is loaded from elsewhere, and runs that are damaged."""

from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sleeptrain.cli.main import main
from sleeptrain.study.chart import Line, thinned
from tests.study.folders import row, write_run


class Elements(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def pictures(page: str) -> list[str]:
    """The SVG texts in a page, after a check that the page has no script and loads nothing."""
    parser = Elements()
    parser.feed(page)
    assert not [tag for tag, _ in parser.found if tag in ("script", "iframe", "object", "embed")]
    loaded = [attrs[name] for _, attrs in parser.found for name in ("src", "href") if name in attrs]
    assert loaded and all(target.startswith("data:") for target in loaded)
    assert "url(" not in page and "@import" not in page
    return [base64.b64decode(t.partition("base64,")[2]).decode() for t in loaded if t.startswith("data:image/svg")]


def texts(svg: str) -> set[str]:
    """The words of a picture, after a check that it refers to nothing outside itself."""
    tree = ET.fromstring(svg)
    references = [v for e in tree.iter() for k, v in e.attrib.items() if k.endswith("href")] + re.findall(
        r"url\((.*?)\)", svg
    )
    assert all(reference.startswith("#") for reference in references)
    return {"".join(e.itertext()).strip() for e in tree.iter("{http://www.w3.org/2000/svg}text")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    evaluated = {"eval_loss": 0.9, "eval_accuracy": 0.75, "eval_accuracy_by_label": {"2": 0.6, "10": 0.5}}
    write_run(tmp_path / "good" / "seed-0", [row(1), row(2, **evaluated)])
    write_run(tmp_path / "good" / "seed-1", [row(1), row(2)], state="stopped")
    write_run(
        tmp_path / "poor", [{"step": 1}, {"step": 2, "loss": None, "lr": 0.1}], "train: {steps: no}\n", None, "{half"
    )
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_a_report_is_one_file_that_names_what_is_damaged(folder: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    assert main(["report", "good", "poor", "empty", "--out", "out/all.html"]) == 0
    page = (folder / "out" / "all.html").read_text()
    drawn = pictures(page)
    labels = {title: texts(svg) for svg in drawn for title in texts(svg) if title[:1].isupper()}
    assert {"Training loss", "Learning rate", "Gradient norm before clipping", "Loss by window"} <= set(labels)
    assert {"optimizer step", "loss (nats per target)", "good/seed-0", "good/seed-1"} <= labels["Training loss"]
    assert "Without loss: poor." in page
    assert "empty holds no metrics of a run" in page and "empty holds no metrics of a run" in capsys.readouterr().err
    for problem in ("1 lines of metrics.jsonl are damaged", "outcome.json is missing", "config.yaml cannot be read"):
        assert f"poor: {problem}" in page
    markdown = (folder / "out" / "all.md").read_text()
    named = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert [(folder / "out" / name).read_text() for name in named] == drawn
    assert "| good/seed-0 | done | 2 | 0 | 2 | 0 | 200 | 4 | 2 | 0.9 | 0.9 | 0.750 |" in markdown
    assert "| run | 2 | 10 |" in markdown
    before = page
    assert main(["report", "good", "poor", "empty", "--out", "out/all.html"]) == 0
    assert (folder / "out" / "all.html").read_text() == before


def test_the_table_as_json_and_errors(folder: Path, capsys: Any) -> None:
    assert main(["report", str(folder / "good"), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["runs"]
    assert (first["held_out_loss"], first["seconds"], first["seed"], first["state"]) == (0.9, 4.0, 0, "done")
    assert (second["held_out_loss"], second["training_loss"], second["state"]) == (None, 2.0, "stopped")
    assert not list(folder.rglob("*.html"))
    for words, message in (
        (
            [str(folder / "empty")],
            "holds no metrics of a run (metrics.jsonl: No such file or directory); give the folder of a run",
        ),
        ([str(folder / "none")], "is not a folder"),
        ([str(folder / "good"), "--out", "x.pdf"], "--out x.pdf: must end in .html"),
    ):
        assert main(["report", *words]) == 2
        assert message in capsys.readouterr().err


def test_long_lines_are_means_of_neighbours() -> None:
    x, y = thinned(Line("a", [float(i) for i in range(901)], [None, *(float(i % 2) for i in range(900))]))
    assert len(x) == 300 and x[0] == 2.0 and y[0] == pytest.approx(1 / 3)
    assert thinned(Line("a", [1.0, 2.0, 3.0], [5.0, float("nan"), 6.0])) == ([1.0, 3.0], [5.0, 6.0])


def test_steps_without_a_finite_value_are_counted(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """A line has no point there, and 300 points at most, so that they cannot be seen in it."""
    monkeypatch.chdir(tmp_path)
    rows = [
        row(1),
        row(2, loss=None, grad_norm=None, skipped=True),
        row(3, grad_norm=9e9, skipped=True),
        row(4, skipped=False),
    ]
    write_run(tmp_path / "run", rows)
    assert main(["report", "run"]) == 0
    page = (tmp_path / "run" / "report.md").read_text()
    assert "run: 1 of 4 steps have no finite loss and are not drawn." in page
    assert "run: 1 of 4 steps have no finite grad_norm and are not drawn." in page and "no finite lr" not in page
    capsys.readouterr()
    assert main(["report", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["skipped"] == 2
    assert "| steps | skipped |" in page and "| 4 | 2 |" in page
