"""Pages of the site that are not files of docs/: the README, the changelog, the findings, and files of the repository that pages link to.

A hook of mkdocs (mkdocs.yml). Links in all sources are relative to their place in the repository, so that they work there as well;
here they become links of the site.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "findings": "findings.md"}
"""Pages of the site by their place in the repository, beside those of docs/."""
ELSEWHERE = "repository"
"""The folder of the site for other files of the repository."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
LANGUAGES = {".sh": "bash", ".py": "python", ".yaml": "yaml", ".toml": "toml", "": "text"}
"""Files that are shown as a page with their text, by suffix. Others are copied."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages, and every file that a page links to."""
    sources = {file.src_uri: f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md")}
    for place, uri in PLACES.items():
        text = findings() if place == "findings" else (ROOT / place).read_text()
        files.append(File.generated(config, uri, content=text))
        sources[uri] = place
    waiting = list(sources.values())
    while waiting:
        place = waiting.pop()
        for target in links(place, findings() if place == "findings" else (ROOT / place).read_text()):
            uri = page_of(target)
            if files.get_file_from_path(uri) is None and (ROOT / target).is_file():
                files.append(File.generated(config, uri, content=shown(target)))
                waiting += [target] * target.endswith(".md")
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The text of a page with links of the site."""
    uri = page.file.src_uri
    place = place_of(uri)

    def link(match: re.Match[str]) -> str:
        target = page_of(resolved(place, match[1]))
        return posixpath.relpath(target, posixpath.dirname(uri) or ".")

    return LINK.sub(link, markdown)


def place_of(uri: str) -> str:
    """The place in the repository of a page of the site."""
    for place, page in PLACES.items():
        if uri == page:
            return place
    return uri.removeprefix(f"{ELSEWHERE}/") if uri.startswith(f"{ELSEWHERE}/") else f"docs/{uri}"


def page_of(place: str) -> str:
    """The page of the site, or its copied file, for a place in the repository."""
    if place in PLACES:
        return PLACES[place]
    suffix = posixpath.splitext(place)[1]
    if suffix in LANGUAGES:
        return f"{ELSEWHERE}/{place}.md"
    return place.removeprefix("docs/") if place.startswith("docs/") else f"{ELSEWHERE}/{place}"


def links(place: str, text: str) -> Iterator[str]:
    """The places in the repository that a text links to."""
    yield from (resolved(place, match[1]) for match in LINK.finditer(text))


def resolved(place: str, target: str) -> str:
    """The place in the repository of a link's target; `place` is that of the text with the link."""
    folder = place if place == "findings" else posixpath.dirname(place)
    return posixpath.normpath(posixpath.join(folder, target))


def shown(place: str) -> str | bytes:
    """The content of a file of the repository as the site has it."""
    suffix = posixpath.splitext(place)[1]
    if suffix not in LANGUAGES:
        return (ROOT / place).read_bytes()
    return f"# {place}\n\n````{LANGUAGES[suffix]}\n{(ROOT / place).read_text()}````\n"


def findings() -> str:
    """The page of findings, from the first comment of every script."""
    parts = [
        "# Findings\n\nWhat dependencies and systems do otherwise than one expects. Each has a script that shows it, in an environment of "
        "its own. A line of a finding that says *seen with* names the versions; others may behave in another way.\n"
    ]
    for path in sorted((ROOT / "findings").glob("*.sh")):
        parts.append(f"## {path.stem.replace('-', ' ')}\n")
        parts += [f"**{name}**{'' if name == 'Seen' else ':'} {text}\n" for name, text in facts(path.read_text())]
        parts.append(f"[The script]({os.path.relpath(path, ROOT / 'findings')})\n")
    return "\n".join(parts)


def facts(text: str) -> Iterator[tuple[str, str]]:
    """(name, text) of the entries in the first comment of a script: `# Guess: ...`, and so on; later lines are indented."""
    comment = []
    for line in text.splitlines()[1:]:
        if not line.startswith("# "):
            break
        comment.append(line[2:])
    for entry in re.split(r"\n(?! )", "\n".join(comment)):
        words = " ".join(entry.split())
        name, colon, rest = words.partition(": ")
        yield (name, rest) if colon and len(name.split()) < 4 else ("Seen", words.removeprefix("Seen "))
