"""Sizes of the product's sources: lines of files and functions, numbers of parameters, and class names that are used once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import PRODUCT, ROOT, name_of

FILE_LINES, FUNCTION_LINES, PARAMETERS, CONFIG_LINES = 250, 80, 8, 650
OPERATORS = {
    ("kernels/sleep_kernels/gated_delta.py", "gated_delta_rule"),
    ("kernels/sleep_kernels/delta_inputs.py", "delta_inputs"),
}
"""Functions whose signature is that of a registered operator: all tensors and options of the forward pass, and those of the backward."""


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of a file, nested ones included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Named parameters without `self` and `cls`."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def is_triton_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether `@triton.jit` or `@kernel(...)` stands before it: pointers, strides and sizes are parameters of their own."""
    calls = [node.func if isinstance(node, ast.Call) else node for node in function.decorator_list]
    return not {"triton.jit", "kernel"}.isdisjoint(map(ast.unparse, calls))


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= FILE_LINES
    long = {function.name: lines(function) for function in functions(path) if lines(function) > FUNCTION_LINES}
    assert not long


def too_many_parameters(path: Path) -> dict[str, int]:
    """Functions with more than PARAMETERS, Triton kernels aside."""
    return {f.name: n for f in functions(path) if (n := parameters(f)) > PARAMETERS and not is_triton_kernel(f)}


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_functions_have_few_parameters(path: Path) -> None:
    found = {name: n for name, n in too_many_parameters(path).items() if (name_of(path), name) not in OPERATORS}
    assert not found


def test_the_exceptions_are_needed() -> None:
    found = {(name_of(path), name) for path in PRODUCT for name in too_many_parameters(path)}
    assert found >= OPERATORS


def test_configuration_is_small() -> None:
    sizes = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "sleeptrain" / "config").rglob("*.py")}
    assert sum(sizes.values()) <= CONFIG_LINES, sizes


def test_a_class_name_is_used_once() -> None:
    places: dict[str, list[str]] = {}
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name_of(path))
    assert not {name: files for name, files in places.items() if len(files) > 1}


def test_the_counts() -> None:
    source = (
        "@kernel(do_not_specialize=['T'])\ndef kernel(a, b):\n    pass\n\n"
        "class C:\n    def method(self, a, /, b, *rest, c=1, **more):\n        x = 1\n\n        return x\n"
    )
    kernel, method = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    assert (is_triton_kernel(kernel), is_triton_kernel(method)) == (True, False)
    assert (parameters(kernel), parameters(method)) == (2, 3)
    assert (lines(kernel), lines(method)) == (2, 4)
