"""Recipes on disk: find one by path or name, read it with the source of every value, and read what it includes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from sleeptrain.config.names import nearest
from sleeptrain.config.scalars import Loader, construct
from sleeptrain.config.tree import Node, show
from sleeptrain.errors import UserError


def find(recipe: str, root: Path, what: str = "recipe") -> Path:
    """The file of a recipe given as a path or as the name of a file in `root`. Raises UserError, which calls it `what`."""
    paths = (Path(recipe), Path(f"{recipe}.yaml"), root / recipe, root / f"{recipe}.yaml")
    if found := [path for path in paths if path.is_file()]:
        return found[0].resolve()
    names = sorted(path.stem for path in root.glob("*.yaml"))
    hint = nearest(Path(recipe).name.removesuffix(".yaml").removesuffix(".yml"), names, count=3)
    hint = hint or f"; there are: {', '.join(names) or 'none'}"
    raise UserError(f"{what} {show(recipe)}: no such file, and none of that name in {root}{hint}")


def read_files(path: Path, root: Path, chain: tuple[Path, ...] = (), what: str = "recipe") -> Iterator[Node]:
    """The trees of the files that a file includes, then its own; `chain` is what includes it. Raises UserError."""
    name = _name(path, root)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot be read: {getattr(error, 'strerror', 'it is not UTF-8 text')}") from None
    tree = read_yaml(text, lambda mark: f"{name}:{mark.line + 1}" if mark else name)
    tree.value = tree.value if tree.value is not None else {}
    if not isinstance(tree.value, dict):
        raise UserError(f"{tree.source}: a {what} is a mapping of sections, not {show(tree)}")
    includes = tree.value.pop("include", Node([]))
    for include in includes.value if isinstance(includes.value, list) else [includes]:
        yield from read_files(_included(include, root, (*chain, path)), root, (*chain, path), what)
    yield tree


def _included(include: Node, root: Path, chain: tuple[Path, ...]) -> Path:
    """The file that the last file of `chain` includes, looked for beside it and in `root`. Raises UserError."""
    folders = list(dict.fromkeys((chain[-1].parent, root)))
    if not isinstance(include.value, str):
        raise UserError(f"include ({include.source}): expected a list of files, such as [model/small.yaml]")
    told = f"include {show(include)} ({include.source})"
    found = [file.resolve() for folder in folders if (file := folder / include.value).is_file()]
    if not found:
        names = {file.relative_to(folder).as_posix() for folder in folders for file in folder.glob("**/*.yaml")}
        raise UserError(f"{told}: no such file in {' or '.join(map(str, folders))}{nearest(include.value, names)}")
    if found[0] in chain:
        circle = " -> ".join(_name(path, root) for path in (*chain, found[0]))
        raise UserError(f"{told}: files include each other: {circle}")
    return found[0]


def _name(path: Path, root: Path) -> str:
    """How a file is called: relative to the recipes' folder or to the current one, else in full."""
    bases = (base for base in (root, Path.cwd()) if path.is_relative_to(base))
    return next((path.relative_to(base).as_posix() for base in bases), str(path))


def read_yaml(text: str, source: Callable[[Any], str]) -> Node:
    """The tree of a YAML text; `source` names the place of a mark. Raises UserError for the first error."""

    def fail(mark: Any, reason: str) -> NoReturn:
        raise UserError(f"{source(mark)}: {reason}") from None

    def tree(node: yaml.Node, mark: Any, around: tuple[yaml.Node, ...] = ()) -> Node:
        if node in around:
            fail(mark, "an alias (*) refers to what contains it")
        if isinstance(node, yaml.ScalarNode):
            try:
                return Node(construct(node.tag, node.value), source(mark), None if node.style else node.value)
            except ValueError as error:
                fail(mark, str(error))
        around = (*around, node)
        if isinstance(node, yaml.SequenceNode):
            return Node([tree(child, child.start_mark, around) for child in node.value], source(mark))
        children: dict[str, Node] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                fail(key.start_mark, "a key must be a word")
            if key.value in children:
                fail(key.start_mark, f"{key.value} is given twice, first at {children[key.value].source}")
            children[key.value] = tree(child, key.start_mark, around)
        return Node(children, source(mark))

    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        fail(getattr(error, "problem_mark", None), f"not valid YAML: {reason}")
    return tree(root, root.start_mark) if root else Node(None, source(None))
