"""Every mechanism of the registry is found in the package, every marker is in the registry, and each is used."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

from fastrdb.protocol import Store
from tests.races.mechanisms import MECHANISMS, without
from tests.races.seams import Change, Function, Line, Mechanism, NoSeamError, markers

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", MECHANISMS)
def test_mechanism_is_found_in_the_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its change replaces something, and can be undone."""
    replaced = []

    def put(owner: Any, attribute: str, new: Any) -> None:
        assert inspect.getattr_static(owner, attribute) != new
        replaced.append(attribute)
        monkeypatch.setattr(owner, attribute, new)

    without(name).apply(put)
    assert replaced


def test_markers_are_all_registered() -> None:
    """A marker names a mechanism whose seam is a line."""
    lines = {name for name, mechanism in MECHANISMS.items() if isinstance(mechanism.seam, Line)}
    assert markers().keys() == lines


def test_mechanisms_are_all_used() -> None:
    """At least one mutant or seeded bug takes out each of them, and none takes out another."""
    used = {
        node.args[0].value
        for folder in ("tests", "benchmarks")
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "without"
        if node.args and isinstance(node.args[0], ast.Constant)
    }
    assert used - {"no-such-mechanism"} == MECHANISMS.keys()


def test_unknown_mechanism_is_an_error() -> None:
    """The error has its name."""
    with pytest.raises(NoSeamError, match="no-such-mechanism"):
        without("no-such-mechanism")


@pytest.mark.parametrize(
    "seam",
    [
        Line(),
        Function("fastrdb.protocol.store:Store.no_such_method"),
        Function("fastrdb.protocol.no_such_module:Store"),
        Function("fastrdb.protocol.store:NoSuchClass.get"),
    ],
    ids=str,
)
def test_mechanism_without_a_seam_is_an_error(seam: Line | Function) -> None:
    """A marker that is gone, or a function: the error has the mechanism's name."""
    with pytest.raises(NoSeamError, match="lost-mechanism"):
        Change("lost-mechanism", Mechanism("", seam)).apply()


def test_script_without_the_line_is_an_error() -> None:
    """Also where another script has it."""
    with pytest.raises(NoSeamError, match="lease-check"):
        without("lease-check", script="acquire-nothing").apply()


def test_line_that_leaves_no_python_is_an_error() -> None:
    """The function is named."""
    with pytest.raises(NoSeamError, match=r"second-sweep: .*Intent\.end"):
        without("second-sweep", "if").apply()


def test_coroutine_function_is_replaced_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a property by a property."""
    change = Change("get-many", Mechanism("", Function("fastrdb.protocol.store:Store.get_many", returns=[])))
    change.apply(monkeypatch.setattr)
    assert inspect.iscoroutinefunction(Store.get_many)
    change = Change("pending", Mechanism("", Function("fastrdb.protocol.store:Store.has_pending", returns=True)))
    change.apply(monkeypatch.setattr)
    assert isinstance(inspect.getattr_static(Store, "has_pending"), property)
