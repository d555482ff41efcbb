"""The packages: imports go down, a package is imported by its face, and each third-party library has its home."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import fastrdb
from fastrdb.transport.scripts import SHARED

PACKAGE = Path(fastrdb.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_MODULE = 400
MOST_NAMES = 25

# From the ground up. A name imports what stands before it, and nothing else of fastrdb.
ORDER = [
    *("errors", "events", "options", "singleflight"),
    *("keys", "values", "orm", "transport", "near", "protocol", "transactions"),
    *("loops", "runtime", "loading", "invalidation", "typing", "cache", "crud"),
    *("__init__", "testing", "demo", "cli", "__main__"),
]
HOMES = {
    "redis": {"transport", "near", "protocol", "testing", "demo"},
    "cachebox": {"near"},
    "wrapt": {"cache"},
    "sqlalchemy": {"orm", "transactions", "crud", "demo"},
}


class Import(NamedTuple):
    """An imported module by its full name. `typing_only`: only type checkers run the import."""

    module: str
    typing_only: bool


def name_of(file: Path) -> str:
    """Return the name directly under `fastrdb` that `file` belongs to."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(file: Path) -> Iterator[Import]:
    """Return the imports anywhere in `file`."""
    package = ["fastrdb", *file.relative_to(PACKAGE).parent.parts]
    tree = ast.parse(file.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            names = [prefix if node.module else f"{prefix}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (Import(name, id(node) in typing_only) for name in dict.fromkeys(names))


def test_imports_go_down_to_a_face() -> None:
    """From outside, a package is imported by its face, and only by what stands above it."""
    wrong = []
    for file in FILES:
        name = name_of(file)
        for imported in imports_of(file):
            root, *inner = imported.module.split(".")
            if root != "fastrdb" or inner[:1] == [name]:
                continue
            target = inner[0] if inner else "__init__"
            if ORDER.index(target) >= ORDER.index(name):
                wrong.append(f"{file.relative_to(PACKAGE)} imports {imported.module}, which is above it")
            elif len(inner) > 1 and name not in ("testing", "demo", "cli", "__main__"):
                wrong.append(f"{file.relative_to(PACKAGE)} imports {imported.module}, past the face of {target}")
    assert not wrong


def test_third_party_libraries_have_a_home() -> None:
    """Redis, wrapt, cachebox and SQLAlchemy are imported at run time by the packages that are about them."""
    strangers = {
        (str(file.relative_to(PACKAGE)), root)
        for file in FILES
        for imported in imports_of(file)
        if not imported.typing_only and (root := imported.module.partition(".")[0]) in HOMES
        if name_of(file) not in HOMES[root]
    }
    assert not strangers


def test_modules_are_of_a_size_to_read() -> None:
    """A module has at most 400 lines."""
    lengths = {str(file.relative_to(PACKAGE)): len(file.read_text().splitlines()) for file in FILES}
    assert not {name: length for name, length in lengths.items() if length > LONGEST_MODULE}


def test_names_under_the_package_are_few_and_in_the_order() -> None:
    """Every name directly under `fastrdb` has a place in the order."""
    names = {name_of(file) for file in FILES}
    assert sorted(names) == sorted(ORDER)
    assert len(names - {"__init__", "__main__"}) <= MOST_NAMES


def test_public_names_exist() -> None:
    """Every name in an `__all__` can be imported, and stands there once."""
    for file in FILES:
        if "__all__" not in file.read_text():
            continue
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
        assert len(set(module.__all__)) == len(module.__all__)
        assert not [name for name in module.__all__ if not hasattr(module, name)], module.__name__


def test_typed_and_scripted_files_are_in_the_package() -> None:
    """The wheel carries the marker of types and the Lua scripts; each script states its keys, arguments and result."""
    assert (PACKAGE / "py.typed").is_file()
    folder = PACKAGE / "protocol" / "lua"
    scripts = {path.stem: path.read_text() for path in folder.rglob("*.lua") if path.stem not in SHARED}
    assert scripts
    for name, text in scripts.items():
        assert all(f"-- {word}: " in text for word in ("KEYS", "ARGV", "Result")), f"{name} does not state its contract"
