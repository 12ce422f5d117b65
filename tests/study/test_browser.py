"""Pages of reports in a browser: no message on its console, and nothing that it refuses to load."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sleeptrain.study.chart import Chart, Line
from sleeptrain.study.page import Page, PageSection, TextTable, to_html, write_page
from tests.sources import ROOT

RESULTS = ROOT / "benchmarks" / "results"
"""Reports of the studies that have been run."""
CHROMIUM = shutil.which("chromium")
SECTION = PageSection(
    "Loss",
    [
        "In nats.",
        TextTable(["run", "loss"], [["a <b>", "1.5"]]),
        Chart("Loss", "step", "loss (nats)", [Line("one", [1, 2], [2.0, 1.0]), Line("chance", [1, 2], [3, 3], style="baseline")]),
    ],
)  # fmt: skip


def console(page: Path, folder: Path) -> list[str]:
    """What a browser says about a page on its console."""
    words = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
    ]
    assert CHROMIUM is not None
    ran = subprocess.run(
        [CHROMIUM, *words, "--disable-background-networking", f"--screenshot={folder / 'page.png'}", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert (folder / "page.png").stat().st_size > 5000
    return [line for line in ran.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.exhaustive
@pytest.mark.skipif(CHROMIUM is None, reason="Debian's package chromium is not installed")
def test_a_page_opens_without_a_message(tmp_path: Path) -> None:
    """The policy in the page makes a browser report whatever would be loaded from elsewhere or run, as the second page shows."""
    good, bad = tmp_path / "good.html", tmp_path / "bad.html"
    write_page(Page("Runs", "Two runs.", [SECTION]), good)
    assert console(good, tmp_path) == []
    text = to_html(Page("Runs", "Two runs.", [PageSection("Text", ["No chart."])]), [])
    bad.write_text(text.replace("</body>", '<img src="http://127.0.0.1:9/x.png"><script>1</script></body>'))
    assert len(console(bad, tmp_path)) == 2


@pytest.mark.exhaustive
@pytest.mark.skipif(CHROMIUM is None, reason="Debian's package chromium is not installed")
@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/report.html")))
def test_committed_reports_open_without_a_message(name: str, tmp_path: Path) -> None:
    assert console(RESULTS / name / "report.html", tmp_path) == []
