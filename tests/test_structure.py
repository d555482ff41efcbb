"""The rooms of the package: imports go one way, each third-party library has its home, and every public name exists."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import fastrdb
from fastrdb.scripts import SHARED

PACKAGE = Path(fastrdb.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 300

# From the ground up: a module imports those before it, in its own room too, and none after it.
ROOMS = {
    "errors": ["errors"],
    "keys": ["values", "sealing", "declared", "keys", "prefixes"],
    "calls": ["parameters", "arguments", "filling", "reaches", "placeholders", "compiled", "calls", "elements"],
    "codec": ["equality", "exact", "schemas", "codec"],
    "policy": ["policy"],
    "events": ["events"],
    "singleflight": ["singleflight"],
    "wire": ["deadlines", "patience", "reasons", "scripts", "connections", "line", "batches", "wire"],
    "near": ["near", "tracking", "cluster_tracking"],
    "store": [
        *("switches", "breaker", "obstacles", "outcomes", "slots", "direct", "restarts", "histories", "looks"),
        *("nodes", "masters", "cluster_direct", "link", "leases", "search", "sweep"),
        *("cluster_leases", "cluster_search", "cluster_sweep"),
        *("layouts", "repairs", "intent", "store"),
    ],
    "session": ["sql", "works", "uses", "drivers", "commits", "endings", "session", "inside", "transactions"],
    "cache": ["loops", "cache", "entries", "misses", "reloads", "loads", "timed", "near_loads", "invalidations"],
    "many": ["batch", "batch_timed", "many"],
    "decorators": ["protocols", "decorators"],
    "crud": ["pagination", "columns", "statements", "instances", "units", "bindings", "writes", "crud"],
    "embedded": ["embedded"],
    "testing": ["testing"],
    "front": ["demo", "cli", "__main__"],
}
ORDER = [module for room in ROOMS.values() for module in room]
HOMES = {
    "redis": {*ROOMS["wire"], "tracking", *ROOMS["store"], "testing", "demo"},
    "cachebox": {"near"},
    "wrapt": {*ROOMS["decorators"]},
    "sqlalchemy": {*ROOMS["session"], *ROOMS["crud"], "demo"},
}


class Import(NamedTuple):
    """One imported module, by its full name, and whether only type checkers see it."""

    module: str
    typing_only: bool


def module_of(file: Path) -> str:
    """Give a file's module as the rooms name it; a package inside counts as one module."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(file: Path) -> Iterator[Import]:
    """Give what a file imports, anywhere in it."""
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
            if prefix == "fastrdb":  # from the package itself: a module of it, or one of its public names
                names = [f"fastrdb.{alias.name}" if alias.name in ORDER else prefix for alias in node.names]
        else:
            continue
        yield from (Import(name, id(node) in typing_only) for name in dict.fromkeys(names))


def name_of(file: Path) -> str:
    """Name a file in a test's id."""
    return str(file.relative_to(PACKAGE))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_one_way(file: Path) -> None:
    """A module imports nothing above itself; `__init__` hands on, and only the front door goes in through it."""
    module = module_of(file)
    if module == "__init__":
        return
    assert module in ORDER, f"{module} has no room"
    for imported in imports_of(file):
        root, _, inner = imported.module.partition(".")
        if root != "fastrdb":
            continue
        target = inner.partition(".")[0]
        if not target:
            assert module in ROOMS["front"], f"{module} imports the package that it is a part of"
        else:
            own = target == module and file.parent != PACKAGE
            assert own or ORDER.index(target) < ORDER.index(module), f"{module} imports {target}, which is above it"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_third_party_libraries_stay_at_home(file: Path) -> None:
    """Redis, wrapt and SQLAlchemy are imported at run time by the rooms that are about them."""
    roots = {imported.module.partition(".")[0] for imported in imports_of(file) if not imported.typing_only}
    strangers = {root for root in roots & HOMES.keys() if module_of(file) not in HOMES[root]}
    assert not strangers


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_modules_are_short(file: Path) -> None:
    """A module that outgrows 300 lines has two ideas in it."""
    assert len(file.read_text().splitlines()) <= LONGEST


def test_every_room_is_there() -> None:
    """The table above lists modules that exist, each once."""
    assert sorted(ORDER) == sorted({module_of(file) for file in FILES} - {"__init__"})


@pytest.mark.parametrize("file", [file for file in FILES if "__all__" in file.read_text()], ids=name_of)
def test_public_names_exist(file: Path) -> None:
    """Every name in an `__all__` can be imported, and stands there once."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), f"{name} is in __all__ and nowhere else"


def test_typed_and_scripted_files_are_in_the_package() -> None:
    """What the wheel must carry besides Python lies inside the package: the marker of types, the Lua scripts."""
    assert (PACKAGE / "py.typed").is_file()
    scripts = {path.stem: path.read_text() for path in (PACKAGE / "lua").glob("*.lua") if path.stem not in SHARED}
    assert scripts
    for name, text in scripts.items():
        assert all(f"-- {word}: " in text for word in ("KEYS", "ARGV", "Result")), f"{name} does not say what it takes"
