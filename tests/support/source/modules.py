"""The source of fastrdb as data: its modules, what each one imports, and what each one defines."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import fastrdb

PACKAGE = Path(fastrdb.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
BESIDE = {"integrations", "cli", "watch"}
"""Rooms that stand on the library's public names: code of the project that the library does without."""
APART = {"demo", "testing", "docs", *BESIDE}
"""Folders that are shipped beside the library and not a part of it."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Import(NamedTuple):
    """An imported module by its full name, or a name from it. `typing_only`: only type checkers run the import."""

    module: str
    name: str | None
    typing_only: bool


def name_of(file: Path) -> str:
    """Return the name directly under `fastrdb` that `file` belongs to."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def module_of(file: Path) -> str:
    """Return the full name of the module in `file`."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def is_face(file: Path) -> bool:
    """Return whether `file` is the face of a package: it hands on the names of the modules beside it."""
    return file.name == "__init__.py" and file.parent != PACKAGE


def library() -> list[Path]:
    """Return the files of the library itself."""
    return [file for file in FILES if name_of(file) not in APART]


def beside_library() -> list[Path]:
    """Return the files of the rooms beside the library."""
    return [file for file in FILES if name_of(file) in BESIDE]


@cache
def tree_of(file: Path) -> ast.Module:
    """Return the syntax tree of `file`."""
    return ast.parse(file.read_text())


def imports_of(file: Path) -> Iterator[Import]:
    """Return the imports anywhere in `file`: one for each name that is imported from a module."""
    package = ["fastrdb", *file.relative_to(PACKAGE).parent.parts]
    typing_only = {
        id(inner)
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, id(node) in typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(module, alias.name, id(node) in typing_only) for alias in node.names)


def tallest_stack() -> list[str]:
    """Return the longest chain of modules in which each one imports the next, seen through the faces of packages."""
    files = {module_of(file): file for file in library()}

    def defining(module: str, name: str | None) -> str | None:
        if name and f"{module}.{name}" in files:
            return f"{module}.{name}"
        if module in files and is_face(files[module]):
            for imported in imports_of(files[module]):
                if imported.name == name:
                    return defining(imported.module, name)
        return module if module in files else None

    @cache
    def below(module: str) -> list[str]:
        found = (defining(imported.module, imported.name) for imported in imports_of(files[module]))
        stacks = [below(each) for each in dict.fromkeys(found) if each and each != module and not is_face(files[each])]
        return [module, *max(stacks, key=len, default=[])]

    return max((below(module) for module, file in files.items() if file.name != "__init__.py"), key=len)


def functions() -> Iterator[tuple[str, int]]:
    """Return each function of the library with its length in lines, decorators left out."""
    for file in [*library(), *beside_library()]:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, Function) and node.end_lineno is not None:
                yield f"{module_of(file)}:{node.name}", node.end_lineno - node.lineno + 1


def defined_twice() -> dict[str, list[str]]:
    """Return the public names that several modules define at their top level, with those modules.

    Left out are type variables, and `logger`, which is one and the same in all modules.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for file in library():
        for node in tree_of(file).body:
            if isinstance(node, Function | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign) and "TypeVar(" not in ast.unparse(node.value):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            else:
                continue
            for name in names:
                if not name.startswith("_") and name != "logger":
                    found[name].append(module_of(file))
    return {name: modules for name, modules in found.items() if len(set(modules)) > 1}


def context_variables(files: Sequence[Path]) -> list[str]:
    """Return those modules in `files` that make context variables, one entry for each of these."""
    return [
        module_of(file)
        for file in files
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "ContextVar"
    ]
