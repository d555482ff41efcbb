"""The twins of a decorated function: source text, written and compiled once, that takes the function's own arguments.

Python itself binds the arguments then, as it would for the function, with the same errors, for a tenth of what
`inspect.Signature.bind` costs. The source text holds names only: literals, defaults and encoders are its globals.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from fastrdb.errors import KeyValueError

from .declared import MISSING, SCALARS
from .encoders import encoder_for, home_of, is_for_int
from .encoding import Encoder, quote
from .pattern import RESERVED_HEAD, SURE, Part, Pattern, Seal, Variant, fit, guard, sealed
from .signature import SESSIONS, IdList, Parameter, acts_as_session, db_of, is_redis, is_session, redis_of

Twin = Callable[..., Any]
_VAR_POSITIONAL, _VAR_KEYWORD = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
_POSITIONAL_ONLY, _KEYWORD_ONLY = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True, slots=True)
class Step:
    """One placeholder: where its value comes from, and how it is written."""

    part: Part
    read: Callable[[Any], Any] | None
    encode: Encoder
    declared: Any


@dataclass(frozen=True, slots=True)
class Pair:
    """An argument that the pattern does not name: left out of the key where its text is that of the default."""

    name: str
    encode: Encoder
    default: Any
    default_text: str | None
    declared: Any


@dataclass
class Recipe:
    """The parts of which a key is made, and the places of Redis and session among a call's arguments.

    Attributes:
        function: the function's name.
        parameters: by name.
        ignored: names of arguments that make no difference.
        pattern: of the key, or None.
        steps: the placeholders of the pattern.
        query: the arguments that the pattern does not name, sorted by name.
        ids: the parameter that takes a list of ids, if one does.
        seal: what hides the values in keys, if something does.
        variant: what stands behind all keys.
    """

    function: str
    parameters: Mapping[str, Parameter]
    ignored: frozenset[str]
    pattern: Pattern | None
    steps: Sequence[Step]
    query: Sequence[Pair]
    ids: IdList | None
    seal: Seal | None
    variant: Variant
    _twins: dict[tuple[bool, ...], Twin] = field(default_factory=dict)

    def __post_init__(self) -> None:
        each = {parameter.role: parameter for parameter in reversed([*self.parameters.values()])}
        self._redis, self._session = each.get("redis"), each.get("session")
        self._kwargs = next((name for name, one in self.parameters.items() if one.kind is _VAR_KEYWORD), None)
        self._named = self.pattern.names if self.pattern else frozenset[str]()

    def twin(self, takes: bool, *, partial: bool = False, many: bool = False, named: bool = False) -> Twin:
        """Return a twin of the function, compiled when it is first asked for.

        Args:
            takes: the first parameter is what the call is bound to.
            partial: what is not part of the key may be left out.
            many: it returns the ids and a key for each, in place of the key.
            named: it returns the arguments by name in place of the key.
        """
        kind = (takes, partial, many, named)
        if kind not in self._twins:
            text = _Text(self.parameters)
            instance = next(iter(self.parameters)) if takes else None
            lines = [f"def twin({self._declaration(text, partial)}):"]
            body = self._needs(text) if partial else []
            body += [] if named else self._key(text, instance, many)
            body += self._where(text, instance)
            if named:
                pairs = "".join(f"{name!r}: {name}, " for name in self.parameters if name != self._kwargs)
                rest = f"**{text.name(self._keywords)}({self._kwargs})" if self._kwargs else ""
                key = f"{{{pairs}{rest}}}"
            else:
                key = f"{text.local('ids')}, {text.local('key')}" if many else text.local("key")
            body.append(f"return {text.local('redis')}, {text.local('session')}, {key}")
            lines += [f"    {line}" for line in body]
            exec(compile("\n".join(lines), f"<fastrdb: {self.function}>", "exec"), text.names)  # noqa: S102 - only names
            made: Any = text.names["twin"]
            made.__name__, made.__qualname__ = self.function.rpartition(".")[2], self.function
            self._twins[kind] = made
        return self._twins[kind]

    def _declaration(self, text: _Text, partial: bool) -> str:
        """Return the parameters, as written between the parentheses of a `def`."""
        parts: list[str] = []
        several = [*self.parameters.values()]
        kinds = [each.kind for each in several]
        for at, each in enumerate(several):
            if each.kind is _KEYWORD_ONLY and not (_VAR_POSITIONAL in kinds or _KEYWORD_ONLY in kinds[:at]):
                parts.append("*")
            default = each.default
            if each.role == "redis" and default is None:  # not given is not there: None means "just run the function"
                default = MISSING
            if each.kind in (_VAR_POSITIONAL, _VAR_KEYWORD):
                parts.append(f"{'*' if each.kind is _VAR_POSITIONAL else '**'}{each.name}")
            elif each.default is MISSING and not partial:
                parts.append(each.name)
            else:
                missing = each.default is MISSING and each.role == "session"
                parts.append(f"{each.name}={'None' if missing else text.name(default)}")
            if each.kind is _POSITIONAL_ONLY and each.kind not in kinds[at + 1 :]:
                parts.append("/")
        return ", ".join(parts)

    def _needs(self, text: _Text) -> list[str]:
        """Return the lines that refuse a partial call without an argument that the key is made of."""

        def refuse(name: str) -> None:
            raise TypeError(f"{self.function}(): missing an argument that the key needs: '{name}'")

        lines = []
        for name, each in self.parameters.items():
            needed = name in self._named or (each.role == "value" and name not in self.ignored)
            if needed and each.default is MISSING and each.kind not in (_VAR_POSITIONAL, _VAR_KEYWORD):
                lines += [f"if {name} is {text.name(MISSING)}:", f"    {text.name(refuse)}({name!r})"]
        return lines

    def _key(self, text: _Text, instance: str | None, many: bool) -> list[str]:
        """Return the lines that make the key, or the ids and their keys."""
        key, ids, one = text.local("key"), text.local("ids"), text.local("one")
        lines = self._query_lines(text, instance)
        parts = []
        for step in self.steps:
            value = root = step.part.root
            if root not in self.parameters:
                value = f"{self._kwargs}[{root!r}]"
            elif self.ids is not None and root == self.ids.parameter:
                value = one if many else f"{text.name(self._check_one)}({root})"
            if step.read is not None:
                value = f"{text.name(step.read)}({value})"
            encoded = f"{text.name(step.encode)}({value})"
            if is_for_int(step.encode) and value.isidentifier():  # which Python writes itself, and sooner
                encoded = f"{value} if {text.name(type)}({value}) is {text.name(int)} else {encoded}"
            parts += [text.name(step.part.literal), encoded]
        tail = self.pattern.tail if self.pattern else ""
        if not lines and self.pattern is not None and (version := self.variant.of_version()):
            tail += f"?{version[1:]}"  # the same in each call
        parts.append(text.name(tail))
        if lines and self.pattern is not None:
            parts.append(text.local("query"))
        expression = f'f"{"".join(f"{{{part}}}" for part in parts if text.names.get(part) != "")}"'
        guarded = self.pattern is not None and RESERVED_HEAD.startswith(
            self.pattern.head
        )  # else the literal head suffices
        finish = text.name((lambda key: fit(guard(key))) if guarded else fit)
        if many and (listed := self.ids) is not None:
            given = text.name(lambda value: listed.ids(value, self.function))
            return [
                *lines,
                f"{ids} = {given}({listed.parameter})",
                f"{key} = [{finish}({expression}) for {one} in {ids}]",
            ]
        long = [] if guarded else [f"if len({key}) > {SURE}:"]
        return [*lines, f"{key} = {expression}", *long, f"{'    ' if long else ''}{key} = {finish}({key})"]

    def _check_one(self, value: Any) -> Any:
        return value if self.ids is None else self.ids.one(value, self.function)

    def _query_lines(self, text: _Text, instance: str | None) -> list[str]:
        """Return the lines that make the part of the key behind the pattern; none if there never is one."""
        query, each = text.local("query"), text.local("text")
        listed = self._kwargs is not None and self.pattern is not None  # sorted at each call; else a str is faster

        def append(name: str) -> str:
            return f'{query}.append(f"{name}={{{each}}}")' if listed else f'{query} += f"&{name}={{{each}}}"'

        found: dict[str, list[str]] = {}
        for pair in self.query:
            if pair.name == instance:
                continue
            add = [append(pair.name)]
            if pair.default is not MISSING:
                add = [f"if {each} != {text.name(pair.default_text)}:", f"    {add[0]}"]
            add.insert(0, f"{each} = {text.name(pair.encode)}({pair.name})")
            if pair.default is not MISSING and (pair.default_text is None or cannot_change(pair.default)):
                add = [f"if {pair.name} is not {text.name(pair.default)}:", *(f"    {line}" for line in add)]
            found[pair.name] = add
        session = self._session
        if session is not None and session.by_name and session.name not in self.ignored:
            found[session.name] = [
                f"{each} = {text.name(self.text_of_session)}({session.name})",
                f"if {each} is not None:",
                f"    {append(session.name)}",
                f"    {session.name} = None",
            ]
        lines, behind = [line for name in sorted(found) for line in found[name]], self._variant_lines(text, instance)
        first = [f"if {query}:", f'    {query} = f"?{{{query}[1:]}}"']
        if not listed and not lines and len(behind) < 2:  # at most the version, of which `_key` makes no line
            return []
        if not listed:
            return [f'{query} = ""', *lines, *behind, *first]
        lines += [f"{query} += {text.name(self._keyword_pairs)}({self._kwargs})", f"{query}.sort()"]
        joined = f'{query} = "".join([f"&{{{each}}}" for {each} in {query}])'
        return [f"{query} = []", *lines, joined, *behind, *first]

    def _variant_lines(self, text: _Text, instance: str | None) -> list[str]:
        """Return the lines that put the pairs of the function behind those of the arguments."""
        query, variant, lines = text.local("query"), self.variant, []
        named = instance is None or self.pattern is None or instance in self._named
        if not named and not variant.shared:  # the common case first, without a call
            lines += [
                f"if {text.name(type)}({instance}) not in {text.name(variant.plain)}:",
                f"    {query} += {text.name(variant.of_class)}({instance})",
            ]
        if self.pattern is not None and (pair := variant.of_version()):
            lines.append(f"{query} += {text.name(pair)}")
        return lines

    @cached_property
    def text_of_session(self) -> Callable[[Any], str | None]:
        """The encoder of an argument that only its name calls a session. It returns None for a session."""
        session = self._session
        encode = sealed(encoder_for(MISSING if session is None else session.declared), self.seal)

        def text_of(value: Any) -> str | None:
            if value is None or is_session(value):
                return None
            try:
                return encode(value)
            except (KeyValueError, RecursionError):
                if acts_as_session(value):
                    return None
                raise

        return text_of

    def _where(self, text: _Text, instance: str | None) -> list[str]:
        """Return the lines that find Redis and session: in the call, in its keyword arguments, in its instance."""
        lines = []
        for role, parameter, among, own, nothing in (
            ("redis", self._redis, self._keyword_redis, redis_of, text.name(MISSING)),
            ("session", self._session, self._keyword_session, db_of, "None"),
        ):
            name, found = text.local(role), nothing
            if parameter is not None:
                found = parameter.name
            elif self._kwargs is not None:
                found = f"{text.name(among)}({self._kwargs})"
            lines.append(f"{name} = {found}")
            if instance is not None:
                lines += [f"if {name} is {nothing}:", f"    {name} = {text.name(own)}({instance})"]
        return lines

    # --- keyword arguments without a parameter of their own -----------------------------------------------------------

    @cached_property
    def keyword_encoder(self) -> Encoder:
        """The encoder of keyword arguments without a parameter of their own."""
        declared = self.parameters[self._kwargs].declared if self._kwargs else MISSING
        home = home_of(self.pattern.shape, "**", declared) if self.pattern else ""
        return sealed(encoder_for(declared, home), self.seal)

    def is_aside(self, name: str, value: Any) -> bool:
        """Return True if a keyword argument is no part of the query: ignored, in the pattern, a Redis or a session.

        The name alone does not make a Redis or a session: a filter may be called so.
        """
        if name in self.ignored or name in self._named:
            return True
        if name == "redis" and self._redis is None:
            return value is None or is_redis(value)
        return name in SESSIONS and self._session is None and is_session(value)

    def _name(self, keyword: str) -> str:
        """Return the name of a keyword argument: that of a positional-only parameter is another argument's."""
        return f"**{keyword}" if keyword in self.parameters or keyword.startswith("*") else keyword

    def _keywords(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {self._name(name): value for name, value in kwargs.items()}

    def _keyword_pairs(self, kwargs: Mapping[str, Any]) -> list[str]:
        """Return the pairs of the query."""
        encode, named = self.keyword_encoder, self._keywords(kwargs)
        return [f"{quote(name)}={encode(each)}" for name, each in named.items() if not self.is_aside(name, each)]

    def _keyword_redis(self, kwargs: Mapping[str, Any]) -> Any:
        found = kwargs.get("redis", MISSING) if "redis" not in self._named else MISSING
        return found if found is None or is_redis(found) else MISSING

    def _keyword_session(self, kwargs: Mapping[str, Any]) -> Any:
        return next((kwargs[name] for name in SESSIONS if is_session(kwargs.get(name))), None)


class _Text:
    """The names that a source text stands on."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.prefix = "_"
        while any(name.startswith(self.prefix) for name in taken):
            self.prefix += "_"
        self.names: dict[str, Any] = {}

    def name(self, value: Any) -> str:
        """Return a new name that stands for `value` in the text."""
        made = f"{self.prefix}{len(self.names)}"
        self.names[made] = value
        return made

    def local(self, word: str) -> str:
        """Return a name for a variable that no parameter has."""
        return f"{self.prefix}{word}"


def cannot_change(value: Any) -> bool:
    """Return True if nothing in the value can change: a scalar, an enum member, a tuple of such."""
    if isinstance(value, tuple | frozenset) and type(value) in (tuple, frozenset):
        return all(cannot_change(each) for each in value)
    return value is None or type(value) in SCALARS or isinstance(value, Enum)
