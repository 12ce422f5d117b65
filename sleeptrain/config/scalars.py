"""How recipes read and write scalars: YAML 1.2's numbers and words, but `yes` and `no` are true and false.

In YAML 1.1, which PyYAML reads, `1e-3` is text, `off` is false, `12:30:00` is 45000 and `010` is 8.
"""

import re
from typing import Any

import yaml

_NUMBER = r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
_KINDS = {
    "null": (r"~|null|Null|NULL|", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO", lambda text: text.lower() in ("true", "yes")),
    "int": (r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", lambda text: int(text.replace("_", ""), 16 if "x" in text else 10)),
    "float": (
        rf"{_NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        lambda text: float(re.sub(r"\.([a-z])", r"\1", text.replace("_", "").lower())),
    ),
}
"""Name of the tag: pattern of an unquoted text that has it, and the value of such a text."""
_TAG = "tag:yaml.org,2002:"


class Loader(yaml.SafeLoader):
    """Composes nodes with the patterns above."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own way to keep them per class)


class Dumper(yaml.SafeDumper):
    """Quotes text that a YAML reader may not read as text, escapes invisible characters, and writes no anchors."""

    ignore_aliases = staticmethod(lambda data: True)

    def text(self, text: str) -> yaml.Node:
        return self.represent_scalar(_TAG + "str", text, style=None if text.isprintable() else '"')

    def mapping(self, mapping: dict[str, Any]) -> yaml.Node:
        return self.represent_mapping(_TAG + "map", mapping, flow_style=bool(self.default_flow_style))


Dumper.add_representer(str, Dumper.text)
Dumper.add_representer(dict, Dumper.mapping)
for _name, (_pattern, _) in _KINDS.items():
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"({_pattern})$"), None)


def construct(tag: str, text: str) -> Any:
    """The value of a scalar. Raises ValueError for a tag that recipes do not have."""
    name = tag.removeprefix(_TAG)
    if name != "str" and name not in _KINDS:
        raise ValueError(f"the tag {tag} means nothing in a recipe")
    return text if name == "str" else _KINDS[name][1](text)


def read_plain(text: str) -> Any:
    """The value of a plain scalar, such as the content of an environment variable."""
    return construct(Loader("").resolve(yaml.ScalarNode, text, (True, False)), text)
