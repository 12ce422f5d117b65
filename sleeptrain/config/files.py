"""Recipes on disk: find one by path or name, read it with the place of every value, and pull in the files it includes."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from sleeptrain.config.errors import UserError
from sleeptrain.config.scalars import Loader, construct
from sleeptrain.config.tree import Node, merge, show


def configs_root() -> Path:
    """The folder of shipped recipes: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_recipe(recipe: str, root: Path) -> Path:
    """The file of a recipe given as a path or as the name of a file in `root`. Raises UserError with the nearest names."""
    choices = [Path(recipe), Path(f"{recipe}.yaml"), root / recipe, root / f"{recipe}.yaml"]
    for path in choices:
        if path.is_file():
            return path
    names = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*.yaml"))
    wanted = Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    near = get_close_matches(wanted, names, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; recipes there: {', '.join(names) or 'none'}"
    raise UserError(f"recipe {show(recipe)}: no such file, and none of that name in {root}{hint}")


def parse(text: str, name: str, layer: int, errors: list[str], place: str | None = None) -> Node | None:
    """The tree of a YAML document, or None after adding what is wrong with it to `errors`.

    name    how the file is called in errors and sources (`model/small.yaml`)
    place   the source of every value, instead of `name:line`
    """
    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        errors.append(f"{_at(name, mark, place)}: not valid YAML: {reason}")
        return None
    if root is None:
        return Node({} if place is None else None, place or f"{name}:1", layer, None if place is None else "")
    return _Reader(name, layer, errors, place).node(root)


def _at(name: str, mark: Any, place: str | None = None) -> str:
    return place or (f"{name}:{mark.line + 1}" if mark else name)


@dataclass
class _Reader:
    """Turns PyYAML's nodes into ours. Errors go to the list; the rest of the file is still read."""

    name: str
    layer: int
    errors: list[str]
    place: str | None
    open: list[int] = field(default_factory=list)
    """Identities of the nodes being read: an alias to one of them would never end."""

    def node(self, source: yaml.Node) -> Node:
        at = _at(self.name, source.start_mark, self.place)
        if id(source) in self.open:
            self.errors.append(f"{at}: an alias (*) refers to what contains it")
            return Node(None, at, self.layer)
        if isinstance(source, yaml.ScalarNode):
            return self.scalar(source, at)
        self.open.append(id(source))
        if isinstance(source, yaml.SequenceNode):
            result = Node([self.node(child) for child in source.value], at, self.layer)
        else:
            result = Node(self.mapping(source), at, self.layer)
        self.open.pop()
        return result

    def scalar(self, source: yaml.ScalarNode, at: str) -> Node:
        try:
            value = construct(source.tag, source.value)
        except ValueError as error:
            self.errors.append(f"{at}: {error}")
            return Node(None, at, self.layer)
        return Node(value, at, self.layer, source.value if source.style is None else None)

    def mapping(self, source: yaml.Node) -> dict[str, Node]:
        children: dict[str, Node] = {}
        first: dict[str, str] = {}
        for key, value in source.value:
            at = _at(self.name, key.start_mark, self.place)
            if not isinstance(key, yaml.ScalarNode):
                self.errors.append(f"{at}: a key must be a word")
                continue
            if key.value in children:
                self.errors.append(f"{at}: {key.value} is given twice, first at {first[key.value]}")
            child = self.node(value)
            # A section belongs where its name stands, not where its first key does.
            children[key.value] = Node(child.value, at, child.layer, child.text)
            first[key.value] = at
        return children


@dataclass
class Files:
    """Reads a recipe and its includes, in order; `errors` collects what is wrong, `complete` says if all were readable."""

    root: Path
    errors: list[str]
    complete: bool = True
    layers: int = 0

    def read(self, path: Path, chain: tuple[Path, ...] = ()) -> Node:
        """The tree of a file over the trees of the files it includes."""
        path = path.resolve()
        name = self.name(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            return self._nothing(name, f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}")
        count = len(self.errors)
        tree = parse(text, name, 0, self.errors)
        if tree is not None and tree.shape != "mapping":
            self.errors.append(f"{tree.source}: a recipe is a mapping of sections, not {show_shape(tree)}")
            tree = None
        if tree is None or len(self.errors) > count:
            self.complete = False
        if tree is None:
            return Node({}, name)
        merged = Node({}, f"{name}:1")
        for include in self._includes(tree.value.pop("include", None)):
            found = self._find(include, path.parent)
            if found is not None and found in (*chain, path):
                circle = " -> ".join(self.name(file) for file in (*chain, path, found))
                self._nothing(
                    name, f"include {show(include.value)} ({include.source}): files include each other: {circle}"
                )
            elif found is not None:
                merged = merge(merged, self.read(found, (*chain, path)))
        self.layers += 1
        return merge(merged, relayer(tree, self.layers))

    def name(self, path: Path) -> str:
        """How a file is called: relative to the recipes' folder or to the current one, else in full."""
        for base in (self.root.resolve(), Path.cwd()):
            if path.is_relative_to(base):
                return path.relative_to(base).as_posix()
        return str(path)

    def _includes(self, node: Node | None) -> list[Node]:
        if node is None or node.value is None:
            return []
        entries = node.value if node.shape == "list" else [node]
        for entry in entries:
            if not isinstance(entry.value, str):
                self._nothing("", f"include ({entry.source}): expected a list of files, such as [model/small.yaml]")
        return [entry for entry in entries if isinstance(entry.value, str)]

    def _find(self, include: Node, folder: Path) -> Path | None:
        for base in (folder, self.root):
            if (base / include.value).is_file():
                return (base / include.value).resolve()
        bases = dict.fromkeys((folder, self.root.resolve()))
        names = {path.relative_to(base).as_posix() for base in bases for path in base.glob("*/*.yaml")}
        names |= {path.name for base in bases for path in base.glob("*.yaml")}
        near = get_close_matches(include.value, sorted(names), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        self._nothing(
            "", f"include {show(include.value)} ({include.source}): no such file in {folder} or {self.root}{hint}"
        )
        return None

    def _nothing(self, name: str, error: str) -> Node:
        self.errors.append(error)
        self.complete = False
        return Node({}, name)


def relayer(node: Node, layer: int) -> Node:
    """The same tree, on another layer."""
    if node.shape == "mapping":
        return Node({key: relayer(child, layer) for key, child in node.value.items()}, node.source, layer, node.text)
    if node.shape == "list":
        return Node([relayer(child, layer) for child in node.value], node.source, layer, node.text)
    return Node(node.value, node.source, layer, node.text)


def show_shape(node: Node) -> str:
    """`a list` or the scalar itself."""
    return "a list" if node.shape == "list" else show(node.value)
