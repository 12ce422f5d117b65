"""Recipes on disk: find one by path or name, read it with the place of every value, and lay it over the files it includes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sleeptrain.config.names import nearest
from sleeptrain.config.scalars import Loader, construct
from sleeptrain.config.tree import KeyPath, Place, Tree, show


def configs_root() -> Path:
    """The folder of shipped recipes: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


@dataclass
class Document:
    """A YAML text. What is wrong goes to `errors`, and the rest is still read."""

    name: str
    """How errors and sources call it; with `lines`, as in `model/small.yaml:3`."""
    lines: bool = True
    errors: list[str] = field(default_factory=list)
    places: dict[KeyPath, Place] = field(default_factory=dict)

    def read(self, text: str, path: KeyPath = ()) -> Any:
        """The plain value of the text, which stands at `path`; None if it is not YAML."""
        try:
            root = yaml.compose(text, Loader=Loader)
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or str(error).splitlines()[0]
            return self.errors.append(f"{self._at(getattr(error, 'problem_mark', None))}: not valid YAML: {reason}")
        self.places[path] = Place(self.name, "")
        return None if root is None else self._value(root, path, self._at(root.start_mark), ())

    def _at(self, mark: Any) -> str:
        return f"{self.name}:{mark.line + 1}" if self.lines and mark else self.name

    def _value(self, node: yaml.Node, path: KeyPath, at: str, around: tuple[yaml.Node, ...]) -> Any:
        """The value of a node whose key stands at `at`, inside of the nodes `around`."""
        self.places[path] = Place(at, node.value if isinstance(node, yaml.ScalarNode) and node.style is None else None)
        if node in around:
            return self.errors.append(f"{at}: an alias (*) refers to what contains it")
        if isinstance(node, yaml.ScalarNode):
            try:
                return construct(node.tag, node.value)
            except ValueError as error:
                return self.errors.append(f"{at}: {error}")
        around = (*around, node)
        if isinstance(node, yaml.SequenceNode):
            children = [(str(index), child, self._at(child.start_mark)) for index, child in enumerate(node.value)]
            return [self._value(child, (*path, index), at, around) for index, child, at in children]
        result: dict[str, Any] = {}
        for key, child in node.value:
            at, inner = self._at(key.start_mark), (*path, key.value)
            if not isinstance(key, yaml.ScalarNode):
                self.errors.append(f"{at}: a key must be a word")
                continue
            if key.value in result:
                self.errors.append(f"{at}: {key.value} is given twice, first at {self.places[inner].source}")
            result[key.value] = self._value(child, inner, at, around)
        return result


@dataclass
class Files:
    """Lays recipes and what they include over `tree`; what is wrong with a file makes the tree incomplete."""

    root: Path
    """The folder of recipes and of what they include."""
    tree: Tree

    def find(self, recipe: str) -> None:
        """Reads a recipe given as a path or as the name of a file in `root`."""
        paths = (Path(recipe), Path(f"{recipe}.yaml"), self.root / recipe, self.root / f"{recipe}.yaml")
        if found := [path for path in paths if path.is_file()]:
            return self._read(found[0].resolve(), ())
        names = sorted(path.stem for path in self.root.glob("*.yaml"))
        hint = nearest(Path(recipe).name.removesuffix(".yaml").removesuffix(".yml"), names, count=3)
        hint = hint or f"; recipes there: {', '.join(names) or 'none'}"
        self._fail(f"recipe {show(recipe)}: no such file, and none of that name in {self.root}{hint}")

    def _read(self, path: Path, chain: tuple[Path, ...]) -> None:
        """Lays what a file includes over the tree, then the file itself. `chain` is what includes it."""
        document, data = Document(self._name(path)), None
        try:
            data = document.read(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            self._fail(f"{document.name}: cannot be read: {getattr(error, 'strerror', None) or error}")
        self._fail(*document.errors)
        if not isinstance(data, dict):
            if data is not None:
                shape = "a list" if isinstance(data, list) else show(data)
                self._fail(f"{document.places[()].source}: a recipe is a mapping of sections, not {shape}")
            data = {}
        includes = data.pop("include", [])
        for index, include in enumerate(includes if isinstance(includes, list) else [includes]):
            place = document.places.get(("include", str(index)), document.places[("include",)])
            self._include(include, f"({place.source})", (*chain, path))
        self.tree.places = self.tree.places.new_child()
        self.tree.lay(data, document.places)

    def _include(self, include: Any, at: str, chain: tuple[Path, ...]) -> None:
        folders = list(dict.fromkeys((chain[-1].parent, self.root)))
        if not isinstance(include, str):
            self._fail(f"include {at}: expected a list of files, such as [model/small.yaml]")
        elif not (found := [file.resolve() for folder in folders if (file := folder / include).is_file()]):
            names = {file.relative_to(folder).as_posix() for folder in folders for file in folder.glob("**/*.yaml")}
            where = " or ".join(map(str, folders)) + nearest(include, names)
            self._fail(f"include {show(include)} {at}: no such file in {where}")
        elif found[0] in chain:
            circle = " -> ".join(map(self._name, (*chain, found[0])))
            self._fail(f"include {show(include)} {at}: files include each other: {circle}")
        else:
            self._read(found[0], chain)

    def _name(self, path: Path) -> str:
        """How a file is called: relative to the recipes' folder or to the current one, else in full."""
        bases = (base for base in (self.root, Path.cwd()) if path.is_relative_to(base))
        return next((path.relative_to(base).as_posix() for base in bases), str(path))

    def _fail(self, *errors: str) -> None:
        self.tree.errors += errors
        self.tree.complete = self.tree.complete and not errors
