"""Numbers of bytes, written with their unit, and how other large numbers are written."""

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


SUFFIXES = {"k": 3, "m": 6, "g": 9, "b": 9, "t": 12, "": 0}
"""Powers of ten that people mean by a letter behind a number."""


def number_hint(text: str, wanted: str) -> str:
    """`; write 1e9 or 1_000_000_000` for a text such as 1B or 1,000,000,000 where a number is wanted; else nothing.

    wanted   the type in words. Letters are not read: B is a billion to some and a byte to others
    """
    found = re.fullmatch(r"(\d[\d_,]*(?:\.\d+)?) ?([kmgbt]?)", text, re.IGNORECASE)
    if found is None or "number" not in wanted or text.isdecimal():
        return ""
    plain, power = found[1].replace(",", ""), SUFFIXES[found[2].lower()]
    whole = f"{round(float(plain.replace('_', '')) * 10**power):_}"
    return f"; write {plain}e{power} or {whole}" if power else f"; write {plain}"
