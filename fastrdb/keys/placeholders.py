"""Which placeholders the templates of one function may have, and the declared types of what they stand for."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastrdb.errors import PatternError

from .declared import MISSING, attribute_type
from .pattern import Part, Template
from .reaches import RESULT
from .signature import Parameter


@dataclass(frozen=True, slots=True)
class Placeholders:
    """A function's parameters as its templates see them.

    Attributes:
        parameters: by name.
        rest: the one that takes all other keyword arguments, if there is one.
        outside: those that are never part of a key.
        returned: the declared type of the result.
    """

    parameters: Mapping[str, Parameter]
    rest: str | None
    outside: frozenset[str]
    returned: Any

    def check(self, part: Part, template: Template, owner: str, *, result: bool) -> None:
        """Refuse a placeholder that never has a value; with *result*, `{result.x}` has one.

        Raises:
            PatternError: naming *owner*, the template and the placeholder.
        """
        name = part.root
        if result and name == RESULT:
            return
        start = f"{owner}: {template.text!r}: placeholder '{{{part.field}}}'"
        if name == self.rest or (name not in self.parameters and self.rest is None):
            raise PatternError(f"{start}: there is no parameter '{name}', only {known(self.parameters)}")
        role = self.parameters[name].role if name in self.parameters else "value"
        if role == "self" and part.path:
            return
        if name in self.outside:
            reason = f"is its {role}" if role != "value" else "is ignored, or the call's Redis or session"
            raise PatternError(f"{start}: parameter '{name}' {reason}, and never part of a key")

    def type_at(self, part: Part, *, result: bool = False) -> Any:
        """Declared type of what a placeholder stands for, MISSING if it cannot be made out."""
        if result and part.root == RESULT:
            return attribute_type(self.returned, part.path)
        found = self.parameters.get(part.root) or self.parameters.get(self.rest or "")
        return MISSING if found is None else attribute_type(type_of(found), part.path)


def known(parameters: Mapping[str, Parameter]) -> str:
    """The names that a key may be made of, for messages."""
    names = [name for name, each in parameters.items() if each.role in ("value", "self")]
    return ", ".join(f"'{name}'" for name in names) or "no parameter"


def type_of(parameter: Parameter) -> Any:
    """Declared type of an argument: of `*args`, that of the whole tuple."""
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return MISSING if parameter.declared is MISSING else types.GenericAlias(tuple, (parameter.declared, ...))
    return parameter.declared
