"""The packages: imports go down, a package is imported by its face, and each third-party library has its home."""

from __future__ import annotations

import importlib

import pytest

from fastrdb.protocol.lua import IN_FRONT
from tests.support.source.modules import (
    FILES,
    PACKAGE,
    beside_library,
    context_variables,
    defined_twice,
    functions,
    imports_of,
    is_face,
    library,
    name_of,
    tallest_stack,
)

LONGEST_MODULE = 400
MOST_NAMES = 25
# Of the library itself. These come down as packages are rebuilt: to 62, 11,600, 14, 45, none and 2.
MOST_MODULES = 90
MOST_LINES = 22_150
MOST_FLOORS = 19
# Of the rooms beside it, which stand on its public names: modules, lines.
BESIDE = {"integrations": (7, 1_165), "cli": (7, 1_450), "watch": (15, 3_000)}
LONGEST_FUNCTION = 45
MOST_DEFINED_TWICE = 0
MOST_CONTEXT_VARIABLES = 2

# From the ground up. A name imports what stands before it, and nothing else of fastrdb.
ORDER = [
    *("errors", "events", "options", "singleflight"),
    *("keys", "registry", "values", "orm", "inference", "transport", "near", "protocol", "transactions"),
    *("runtime", "invalidation", "loading", "typing", "wrappers", "cache", "crud", "watch"),
    *("__init__", "integrations", "testing", "demo", "cli", "__main__"),
]
HOMES = {
    "redis": {"transport", "near", "protocol", "watch", "integrations", "testing", "demo", "cli"},
    "cachebox": {"near"},
    "wrapt": {"wrappers"},
    "sqlglot": {"inference"},
    "sqlalchemy": {"orm", "inference", "transactions", "crud", "watch", "integrations", "demo", "cli"},
}


def test_imports_go_down_to_a_face() -> None:
    """From outside, a package is imported by its face, and only by what stands above it."""
    wrong = []
    for file in FILES:
        name = name_of(file)
        for imported in imports_of(file):
            root, *inner = imported.module.split(".")
            if imported.module == "fastrdb" and imported.name in ORDER:
                inner = [imported.name]
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


def test_library_is_small_enough_to_read() -> None:
    """Its modules and lines are counted without the demo, the kit for tests and the documents; faces are no modules."""
    files = library()
    assert len([file for file in files if not is_face(file)]) <= MOST_MODULES
    assert sum(len(file.read_text().splitlines()) for file in files) <= MOST_LINES


@pytest.mark.parametrize("room", BESIDE)
def test_rooms_beside_the_library_are_small_enough_to_read(room: str) -> None:
    """Integrations and command line have a limit each."""
    files = [file for file in FILES if name_of(file) == room]
    modules, lines = BESIDE[room]
    assert len([file for file in files if not is_face(file)]) <= modules
    assert sum(len(file.read_text().splitlines()) for file in files) <= lines


def test_context_variables_of_the_rooms_beside_are_few() -> None:
    """`Cache-Status` has one, which holds the events of a request."""
    assert context_variables(beside_library()) == ["fastrdb.integrations.cache_status"]


def test_imports_have_few_floors() -> None:
    """The longest chain of modules of which each one imports the next is short."""
    stack = tallest_stack()
    assert len(stack) <= MOST_FLOORS, " > ".join(stack)


def test_functions_are_short() -> None:
    """A function is seen at one glance."""
    assert not {name: length for name, length in functions() if length > LONGEST_FUNCTION}


def test_names_have_one_meaning() -> None:
    """No public name is defined at the top level of two modules."""
    twice = defined_twice()
    assert len(twice) <= MOST_DEFINED_TWICE, twice


def test_context_variables_are_few() -> None:
    """One holds the running call, and one says that the cache is disabled."""
    found = context_variables(library())
    assert len(found) <= MOST_CONTEXT_VARIABLES, found


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
    in_front = (*IN_FRONT, "shared")
    scripts = {path.stem: path.read_text() for path in folder.rglob("*.lua") if path.stem not in in_front}
    assert scripts
    for name, text in scripts.items():
        assert all(f"-- {word}: " in text for word in ("KEYS", "ARGV", "Result")), f"{name} does not state its contract"
