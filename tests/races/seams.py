"""Take a named mechanism out of fastrdb, or put something else in its place.

A mechanism has one of two seams:

- `Line`: the comment `mechanism: NAME` at the end of its line, in Lua (`--`) or in Python (`#`). The line is replaced.
- `Function`: a function, method or property. The whole is replaced.

A mechanism whose seam is not found raises NoSeamError with its name. The benchmarks use this module too, so it needs
nothing that only tests have.
"""

from __future__ import annotations
import __future__

import ast
import hashlib
import importlib
import inspect
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any, NamedTuple

import fastrdb
from fastrdb.transport.commands import Script

PACKAGE = Path(fastrdb.__file__).parent
MARKER = re.compile(r"^(?P<indent>[ \t]*)(?P<line>.*?)[ \t]*(?:--|#) mechanism: (?P<name>[a-z0-9-]+)$", re.MULTILINE)
_AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef
Put = Callable[[Any, str, Any], None]
"""`setattr`, or one that can be undone, as pytest's."""


class NoSeamError(LookupError):
    """A mechanism has no seam in fastrdb: its marker, or its function, is not there."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line with a marker. `instead` takes its place; None leaves nothing in Lua, and `pass` in Python."""

    instead: str | None = None


@dataclass(frozen=True, slots=True)
class Function:
    """The function at `path` ("package.module:Class.name"). `instead` replaces it, or else what returns `returns`."""

    path: str
    returns: Any = None
    instead: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class Mechanism:
    """One mechanism: what it ensures, and where it is."""

    what: str
    seam: Line | Function


class Place(NamedTuple):
    """A marked line: its file, its number (from 1)."""

    file: Path
    number: int


@cache
def markers() -> dict[str, list[Place]]:
    """Return the marked lines of the package, by the mechanism's name."""
    found: defaultdict[str, list[Place]] = defaultdict(list)
    for file in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.lua")]):
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            if match := MARKER.match(line):
                found[match["name"]].append(Place(file, number))
    return dict(found)


@dataclass(frozen=True, slots=True)
class Change:
    """A mechanism taken out, or replaced by something else than the registry says.

    `script`: only in the Lua scripts of this name, where several share the marked line.
    """

    name: str
    mechanism: Mechanism
    instead: Any = None
    script: str | None = None

    def __str__(self) -> str:
        where = f"{self.script} " if self.script else ""
        if self.instead is None:
            return f"{where}without {self.name}"
        return f"{where}with another {self.name}: {getattr(self.instead, '__name__', self.instead)}"

    def apply(self, put: Put = setattr) -> list[Script]:
        """Make the change in this process. Return the Lua scripts that have changed.

        Raises:
            NoSeamError: the mechanism is not where the registry says.
        """
        if isinstance(self.mechanism.seam, Function):
            self._replace_function(self.mechanism.seam, put)
            return []
        instead = self.instead if self.instead is not None else self.mechanism.seam.instead
        found = markers().get(self.name, [])
        if not found:
            raise NoSeamError(f"no line of fastrdb has the comment 'mechanism: {self.name}'")
        if any(place.file.suffix == ".py" for place in found):
            _replace_in_python(self.name, found, "pass" if instead is None else instead, put)
            return []
        changed = _replace_in_lua(self.name, instead or "", self.script, put)
        if not changed:
            raise NoSeamError(f"no script {self.script or ''} that is loaded has the line of {self.name}")
        return changed

    def _replace_function(self, seam: Function, put: Put) -> None:
        owner, name, old = _resolve(self.name, seam.path)
        new = self.instead or seam.instead or _returning(old, seam.returns)
        if isinstance(old, property | MemberDescriptorType) and not isinstance(new, property):
            new = property(new, lambda self, value: None)
        if not isinstance(owner, ModuleType):
            put(owner, name, new)
            return
        for module in _modules():  # also where the function was imported to
            for attribute, value in list(vars(module).items()):
                if value is old:
                    put(module, attribute, new)


def original(mechanism: Mechanism) -> Any:
    """Return the function that is the seam of a mechanism, for a replacement that calls it."""
    assert isinstance(mechanism.seam, Function)
    return _resolve(mechanism.what, mechanism.seam.path)[2]


def _modules() -> Iterator[ModuleType]:
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] == "fastrdb":
            yield module


def _resolve(mechanism: str, path: str) -> tuple[Any, str, Any]:
    """Return the owner of what `path` says, its name there, and itself."""
    module, _, inner = path.partition(":")
    *parents, name = inner.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for parent in parents:
            owner = getattr(owner, parent)
        return owner, name, inspect.getattr_static(owner, name)
    except (ImportError, AttributeError) as error:
        raise NoSeamError(f"{mechanism}: {path} is not there ({error})") from None


def _returning(old: Any, value: Any) -> Any:
    """Return a function of the same kind as `old` which does nothing."""

    async def returns_later(*arguments: Any, **options: Any) -> Any:
        return value

    def returns(*arguments: Any, **options: Any) -> Any:
        return value

    new = returns_later if inspect.iscoroutinefunction(inspect.unwrap(getattr(old, "__func__", old))) else returns
    return staticmethod(new) if isinstance(old, staticmethod | classmethod) else new


# --- Lua


def _replace_in_lua(name: str, instead: str, script: str | None, put: Put) -> list[Script]:
    """Replace the line in every script that is loaded, wherever a module keeps it."""
    marked = re.compile(rf"^(?P<indent>[ \t]*).*-- mechanism: {name}$", re.MULTILINE)
    changed: dict[Script, Script] = {}
    for module in _modules():
        for attribute, value in list(vars(module).items()):
            if not isinstance(value, Script) or script not in (None, value.name) or not marked.search(value.text):
                continue
            text = marked.sub(lambda match: match["indent"] + instead, value.text)
            sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            put(module, attribute, changed.setdefault(value, Script(value.name, text, sha)))
    return list(changed.values())


# --- Python


def _replace_in_python(name: str, places: Iterable[Place], instead: str, put: Put) -> None:
    """Compile each function that has a marked line without that line, and give the function this code."""
    for file in sorted({place.file for place in places}):
        numbers = {place.number for place in places if place.file == file}
        lines = file.read_text("utf-8").splitlines()
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
        for path, node in _functions_around(ast.parse("\n".join(lines)), numbers):
            source = []
            for number in sorted(_lines_of(node)):
                line = lines[number - 1]
                if number in numbers:
                    line = textwrap.indent(instead, line[: len(line) - len(line.lstrip())])
                source.append(line)
            _, _, found = _resolve(name, f"{module.__name__}:{path}")
            function = _plain(found)
            if function.__code__.co_filename == "<without>":
                raise NoSeamError(f"{name}: {path} has been changed before; one change of a function at a time")
            put(function, "__code__", _compiled(name, textwrap.dedent("\n".join(source)), function))


def _functions_around(tree: ast.Module, numbers: set[int]) -> Iterator[tuple[str, _AnyFunction]]:
    """Return the functions of the module and of its classes in which these lines are, and their qualified names."""

    def search(body: list[ast.stmt], path: str) -> Iterator[tuple[str, _AnyFunction]]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from search(node.body, f"{path}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and numbers & _lines_of(node):
                yield f"{path}{node.name}", node

    yield from search(tree.body, "")


def _lines_of(node: ast.stmt) -> set[int]:
    return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))


def _plain(found: Any) -> FunctionType:
    """Return the function inside a property, a class method or a decorated function."""
    function = found.fget if isinstance(found, property) else inspect.unwrap(getattr(found, "__func__", found))
    assert isinstance(function, FunctionType)
    return function


def _compiled(name: str, source: str, function: FunctionType) -> CodeType:
    scope: dict[str, Any] = {}
    flags = __future__.annotations.compiler_flag
    try:
        code = compile(source, "<without>", "exec", flags, dont_inherit=True)
    except SyntaxError as error:
        raise NoSeamError(f"{name}: without it {function.__qualname__} is no Python: {error}") from error
    exec(code, function.__globals__, scope)  # the project's own source
    made: CodeType = scope[function.__name__].__code__
    if made.co_freevars != function.__code__.co_freevars:
        raise NoSeamError(f"{name}: {function.__qualname__} is a closure, which cannot be given other code")
    return made
