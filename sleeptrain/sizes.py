"""Numbers of bytes, written with their unit."""

from __future__ import annotations

import re

UNITS = {
    "B": 1,
    **{f"{k}iB": 1024**n for n, k in enumerate("KMGT", 1)},
    **{f"{k}B": 1000**n for n, k in enumerate("KMGT", 1)},
}
"""Bytes of a unit."""


def read_size(text: str) -> int:
    """The bytes of a text such as 80GiB or 1.5TB. ValueError if it is none, or zero."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?B|B)", text)
    size = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if size == 0:
        raise ValueError(f"{text!r} is not a size with its unit, such as 80GiB")
    return size
