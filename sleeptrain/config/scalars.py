"""How recipes read and write scalars: YAML 1.2's numbers and words, without YAML 1.1's surprises.

In YAML 1.1, which PyYAML reads, `1e-3` is text, `off` is false, `12:30:00` is 45000 and `010` is 8. Here `1e-3` is a number and
the other three are what they look like. `yes` and `no` are true and false still.
"""

import re
from typing import Any

import yaml

_FLOAT = (
    r"([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)
_PATTERNS = {
    "null": (r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"(true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO)$", list("tTfFyYnN")),
    "int": (r"([-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    "float": (_FLOAT, list("-+0123456789.")),
}
_TAG = "tag:yaml.org,2002:"


class Loader(yaml.SafeLoader):
    """Composes nodes with the rules above."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own way to keep them per class)


class Dumper(yaml.SafeDumper):
    """Quotes text that the loader, or another YAML reader, would not read as text; writes equal values out, without anchors."""

    yaml_implicit_resolvers = {first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012
    ignore_aliases = lambda self, data: True  # noqa: E731

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Text with line breaks or invisible characters is quoted and escaped, so that it stays on one line and visible."""
        return self.represent_scalar(_TAG + "str", text, style=None if text.isprintable() else '"')


Dumper.add_representer(str, Dumper.represent_text)
for _name, (_pattern, _first) in _PATTERNS.items():
    Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)
    Dumper.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)


def construct(tag: str, text: str) -> Any:
    """The value of a scalar. Raises ValueError for a tag that recipes do not have."""
    digits = text.replace("_", "").lower()
    match tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return digits in ("true", "yes")
        case "int":
            return int(digits, 16 if digits.startswith("0x") else 10)
        case "float":
            return float(digits.replace(".inf", "inf").replace(".nan", "nan"))
        case "str":
            return text
    raise ValueError(f"the tag {tag} means nothing in a recipe")


def read_plain(text: str) -> Any:
    """The value of a plain scalar, such as the content of an environment variable."""
    return construct(Loader("").resolve(yaml.ScalarNode, text, (True, False)), text)
