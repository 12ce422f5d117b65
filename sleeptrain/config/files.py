"""Recipes on disk: find one by path or name, read it with the place of every value, and lay it over the files it includes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sleeptrain.config.errors import UserError
from sleeptrain.config.names import nearest
from sleeptrain.config.scalars import Loader, construct
from sleeptrain.config.tree import KeyPath, Place, Tree, merge, show


def configs_root() -> Path:
    """The folder of shipped recipes: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_recipe(recipe: str, root: Path) -> Path:
    """The file of a recipe given as a path or as the name of a file in `root`. Raises UserError with the nearest names."""
    for path in (Path(recipe), Path(f"{recipe}.yaml"), root / recipe, root / f"{recipe}.yaml"):
        if path.is_file():
            return path
    names = sorted(path.stem for path in root.glob("*.yaml"))
    near = nearest(Path(recipe).name.removesuffix(".yaml").removesuffix(".yml"), names, count=3)
    hint = near or f"; recipes there: {', '.join(names) or 'none'}"
    raise UserError(f"recipe {show(recipe)}: no such file, and none of that name in {root}{hint}")


@dataclass
class Document:
    """One YAML text. What is wrong with it goes to `errors`; the rest is still read."""

    name: str
    """How errors and sources call it, as in `model/small.yaml:3`."""
    errors: list[str]
    place: str | None = None
    """The source of every value, instead of `name:line`."""
    places: dict[KeyPath, Place] = field(default_factory=dict)

    def read(self, text: str, path: KeyPath = ()) -> Any:
        """The plain value of the text, which stands at `path`; its places are added to `places`. None if it is not YAML."""
        try:
            root = yaml.compose(text, Loader=Loader)
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or str(error).splitlines()[0]
            self.errors.append(f"{self._at(getattr(error, 'problem_mark', None))}: not valid YAML: {reason}")
            return None
        if root is None:
            self.places[path] = Place(self.place or f"{self.name}:1", "")
            return None
        return self._value(root, path, self._at(root.start_mark), ())

    def _at(self, mark: Any) -> str:
        return self.place or (f"{self.name}:{mark.line + 1}" if mark else self.name)

    def _value(self, node: yaml.Node, path: KeyPath, at: str, parents: tuple[yaml.Node, ...]) -> Any:
        """`at` is where the key stands, which is where a section belongs; `parents` are the nodes around this one."""
        self.places[path] = Place(at)
        if any(node is parent for parent in parents):
            self.errors.append(f"{at}: an alias (*) refers to what contains it")
        elif isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path, at)
        elif isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, (*parents, node))
        else:
            children = enumerate(node.value)
            return [self._value(n, (*path, str(i)), self._at(n.start_mark), (*parents, node)) for i, n in children]

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath, at: str) -> Any:
        try:
            value = construct(node.tag, node.value)
        except ValueError as error:
            self.errors.append(f"{at}: {error}")
            return None
        self.places[path] = Place(at, node.value if node.style is None else None)
        return self._interpolation(value, path) if isinstance(value, str) and "${" in value else value

    def _interpolation(self, text: str, path: KeyPath) -> str | None:
        """The text, or None if it is no interpolation, such as one with an open brace: OmegaConf refuses a whole tree for it."""
        from omegaconf import OmegaConf
        from omegaconf.errors import GrammarParseError

        try:
            OmegaConf.create([text])
        except GrammarParseError as error:
            at, reason = self.places[path].source, str(error).splitlines()[0]
            self.errors.append(f"{'.'.join(path)} = {show(text)} ({at}): not a valid interpolation: {reason}")
            self.places[path] = Place(at, broken=True)
            return None
        return text

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, parents: tuple[yaml.Node, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, child in node.value:
            at, inner = self._at(key.start_mark), (*path, key.value)
            if not isinstance(key, yaml.ScalarNode):
                self.errors.append(f"{at}: a key must be a word")
                continue
            if key.value in result:
                self.errors.append(f"{at}: {key.value} is given twice, first at {self.places[inner].source}")
            result[key.value] = self._value(child, inner, at, parents)
        return result


@dataclass
class Files:
    """Lays a recipe and its includes over `tree`, in order; `complete` says whether all of them were readable."""

    root: Path
    tree: Tree
    errors: list[str]
    complete: bool = True

    def read(self, path: Path, chain: tuple[Path, ...] = ()) -> None:
        """Lays the files that a file includes over the tree, then the file itself. `chain` is what includes it."""
        path = path.resolve()
        document = Document(self._name(path), errors := [])
        try:
            data = document.read(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            return self._fail(f"{document.name}: cannot be read: {getattr(error, 'strerror', None) or error}")
        if data is None:
            data = {}
        elif not isinstance(data, dict):
            shape = "a list" if isinstance(data, list) else show(data)
            errors, data = (
                [*errors, f"{document.places[()].source}: a recipe is a mapping of sections, not {shape}"],
                {},
            )
        for error in errors:
            self._fail(error)
        includes = data.pop("include", [])
        for index, include in enumerate(includes if isinstance(includes, list) else [includes]):
            source = document.places.get(("include", str(index)), document.places[("include",)]).source
            self._include(include, source, (*chain, path))
        self.tree.data = merge(self.tree.data, data)
        self.tree.places = self.tree.places.new_child(document.places)
        return None

    def _include(self, include: Any, source: str, chain: tuple[Path, ...]) -> None:
        if not isinstance(include, str):
            return self._fail(f"include ({source}): expected a list of files, such as [model/small.yaml]")
        folders = list(dict.fromkeys((chain[-1].parent, self.root.resolve())))
        found = next((file.resolve() for folder in folders if (file := folder / include).is_file()), None)
        if found is None:
            names = {file.relative_to(folder).as_posix() for folder in folders for file in folder.glob("**/*.yaml")}
            where = " or ".join(str(folder) for folder in folders)
            return self._fail(f"include {show(include)} ({source}): no such file in {where}{nearest(include, names)}")
        if found in chain:
            circle = " -> ".join(self._name(file) for file in (*chain, found))
            return self._fail(f"include {show(include)} ({source}): files include each other: {circle}")
        return self.read(found, chain)

    def _name(self, path: Path) -> str:
        """How a file is called: relative to the recipes' folder or to the current one, else in full."""
        bases = (base for base in (self.root.resolve(), Path.cwd()) if path.is_relative_to(base))
        return next((path.relative_to(base).as_posix() for base in bases), str(path))

    def _fail(self, error: str) -> None:
        self.errors.append(error)
        self.complete = False
