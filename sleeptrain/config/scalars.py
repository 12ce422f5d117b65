"""How recipes read and write scalars: YAML 1.2's numbers and words, without YAML 1.1's surprises.

In YAML 1.1, which PyYAML reads, `1e-3` is text, `off` is false, `12:30:00` is 45000 and `010` is 8. Here `1e-3` is a number and
the other three are what they look like. `yes` and `no` are true and false still.
"""

import re
from typing import Any

import yaml

_DIGITS = "-+0123456789"
_NUMBER = r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
_KINDS = {  # name: pattern, first characters, reader
    "null": (r"(~|null|Null|NULL|)$", ["~", "n", "N", ""], lambda text: None),
    "bool": (
        r"(true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO)$", "tTfFyYnN", lambda text: text.lower() in ("true", "yes"),
    ),
    "int": (r"([-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+)$", _DIGITS, lambda text: int(text.replace("_", ""), 16 if "x" in text else 10)),
    "float": (
        rf"({_NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", _DIGITS + ".",
        lambda text: float(re.sub(r"\.([a-z])", r"\1", text.replace("_", "").lower())),
    ),
}  # fmt: skip
_TAG = "tag:yaml.org,2002:"


class Loader(yaml.SafeLoader):
    """Composes nodes with the rules above."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own way to keep them per class)


class Dumper(yaml.SafeDumper):
    """Quotes what a YAML reader may not read as text, escapes what is invisible, and writes equal values out, without anchors."""

    yaml_implicit_resolvers = {first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012
    ignore_aliases = staticmethod(lambda data: True)


def _represent(dumper: Any, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(_TAG + "str", text, style=None if text.isprintable() else '"')


Dumper.add_representer(str, _represent)
for _name, (_pattern, _first, _) in _KINDS.items():
    Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), list(_first))
    Dumper.add_implicit_resolver(_TAG + _name, re.compile(_pattern), list(_first))


def construct(tag: str, text: str) -> Any:
    """The value of a scalar. Raises ValueError for a tag that recipes do not have."""
    name = tag.removeprefix(_TAG)
    if name != "str" and name not in _KINDS:
        raise ValueError(f"the tag {tag} means nothing in a recipe")
    return text if name == "str" else _KINDS[name][2](text)


def read_plain(text: str) -> Any:
    """The value of a plain scalar, such as the content of an environment variable."""
    return construct(Loader("").resolve(yaml.ScalarNode, text, (True, False)), text)
