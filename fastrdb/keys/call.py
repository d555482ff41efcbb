"""How a call gives its key, its Redis and its session: decided when a function is decorated, cheap when called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastrdb.errors import KeyValueError, MissingKeyFieldError, OptionError, PatternError

from .arguments import BOUND, Binder
from .compiled import Locate, Recipe, compile_locate
from .declared import MISSING, encode_with, encoder_for
from .encoding import Encoder, quote
from .filling import Filling, attribute, part_encoder, reader
from .pattern import LIMIT, RESERVED_HEAD, Template, fit, guard
from .placeholders import Placeholders, known, type_of
from .reaches import Reaches
from .sealing import Seal, sealed
from .signature import Inspected, inspect_function, redis_of, session_of

__all__ = ["MISSING", "CallPlan"]

UNSAID = (ValueError, AttributeError, KeyError, RecursionError, TypeError)
"""What is wrong with a call's arguments, without the name of the parameter."""
_SURE = LIMIT // 4  # so few characters are never too many bytes


class CallPlan:
    """One decorated function's calls. Built by `of`; nothing in it changes afterwards."""

    def __init__(self, found: Inspected, ignore: Iterable[str], owner: str, seal: Seal | None) -> None:
        self.function = found.name
        self.return_type = found.return_type
        self._parameters = {each.name: each for each in found.parameters}
        self._kwargs = found.of_kind(inspect.Parameter.VAR_KEYWORD)
        self._seal = seal
        declared = self._parameters[self._kwargs].declared if self._kwargs else MISSING
        self._keyword_encoder = sealed(encoder_for(declared), seal)
        self._redis = next((each for each in found.parameters if each.role == "redis"), None)
        self.session_name = next((each.name for each in found.parameters if each.role == "session"), None)
        self.redis_optional = self._redis is not None and self._redis.default is None
        self._first = found.parameters[0].name if found.parameters else None
        self._self = self._first if found.takes_instance else None
        self._outside = self._left_out(ignore, owner)
        self._placeholders = Placeholders(self._parameters, self._kwargs, self._outside, self.return_type)
        names = ("db", "session") if self.session_name is None else (self.session_name,)
        self._session_names = tuple(name for name in names if name in self._outside)
        self._binder = Binder(found, self._outside)
        self._template: Template | None = None
        self.head = ""  # what its keys begin with, but for the few that `guard` changes
        self._guarded = False
        self._steps: tuple[tuple[str, str, Callable[[Any], Any] | None, Encoder], ...] = ()
        self._query: tuple[tuple[str, Any, str | None, Encoder], ...] = ()
        self.reaches = Reaches((), ())
        self._signature = found.signature
        self._takes_instance = found.takes_instance
        self.quick: Locate | None = None
        """`locate` for calls without an instance, if there is a quick way; `locate` says better what is wrong."""

    @classmethod
    def of(
        cls,
        fn: Any,
        *,
        pattern: str | Template | None,
        prefixes: Sequence[str] = (),
        keys: Sequence[str] = (),
        ignore: Sequence[str] = (),
        decorator: str,
        seal: Seal | None = None,
    ) -> CallPlan:
        """The plan for *fn*, everything checked.

        Args:
            fn: the function, or what `inspect_function` gave for it.
            pattern: the key's pattern, parsed already if it is fastrdb's own; None for a function that has no key.
            prefixes: what is invalidated; `{result.x}` takes the function's result.
            keys: patterns of single keys that are invalidated.
            ignore: parameters that do not make a difference to the result.
            decorator: its name, for messages.
            seal: what hides the values in keys, if something does.

        Raises:
            PatternError: a wrong pattern or prefix, or a placeholder for what the function does not have.
            OptionError: *fn* is not a coroutine function; *ignore* names what it does not have.
        """
        found = fn if isinstance(fn, Inspected) else inspect_function(fn, decorator)
        owner = f"@{decorator} on {found.name}"
        plan = cls(found, (ignore,) if isinstance(ignore, str) else ignore, owner, seal)
        if pattern is not None:
            parsed = pattern if isinstance(pattern, Template) else Template.parse(pattern, owner=owner, kind="pattern")
            plan._compile(parsed, owner)
        filled = [plan._filling(text, owner, "prefix") for text in prefixes if text != ""]
        plan.reaches = Reaches(filled, [plan._filling(text, owner, "pattern") for text in keys])
        return plan

    # --- at decoration ------------------------------------------------------------------------------------------------

    def _left_out(self, ignore: Iterable[str], owner: str) -> frozenset[str]:
        """The names that are never part of a key."""
        for name in (names := tuple(ignore)):
            if name not in self._parameters and self._kwargs is None:
                raise OptionError(f"{owner}: ignore names '{name}', but there is only {known(self._parameters)}")
        special = {name for name, each in self._parameters.items() if each.role != "value"}
        if self._kwargs is not None:  # without parameters of their own, these arrive among the keyword arguments
            special |= {"redis"} - self._parameters.keys() if self._redis is None else set()
            special |= {"db", "session"} - self._parameters.keys() if self.session_name is None else set()
        return frozenset(special.union(names))

    def _compile(self, template: Template, owner: str) -> None:
        for part in template.parts:
            self._placeholders.check(part, template, owner, result=False)
        self._template, self.head = template, template.head
        self._guarded = RESERVED_HEAD.startswith(template.head)  # else the literal head alone keeps it apart
        self._steps = tuple(
            (
                part.literal,
                part.root,
                reader(part.path),
                part_encoder(part, self._placeholders.type_at(part), self._seal),
            )
            for part in template.parts
        )
        left = self._parameters.keys() - template.names - self._outside - {self._kwargs}
        self._query = tuple(self._pair(name) for name in sorted(left))
        if self._kwargs is None:
            self.quick = compile_locate(self.function, [*self._signature.parameters.values()], self._recipe(template))

    def _recipe(self, template: Template) -> Recipe:
        return Recipe(
            steps=self._steps,
            tail=template.tail,
            query=self._query,
            finish=lambda key: fit(guard(key)) if self._guarded else fit(key),
            always_finish=self._guarded,
            sure=_SURE,
            redis=None if self._redis is None else self._redis.name,
            session=self.session_name,
            own_redis=redis_of,
            own_session=session_of,
            instance=self._self,
        )

    def _pair(self, name: str) -> tuple[str, Any, str | None, Encoder]:
        """Name, default, the default's text and the encoder of an argument that the pattern does not name."""
        parameter = self._parameters[name]
        encode = sealed(encoder_for(type_of(parameter)), self._seal)
        default = () if parameter.kind is inspect.Parameter.VAR_POSITIONAL else parameter.default
        try:
            text = None if default is MISSING else encode(default)
        except (KeyValueError, RecursionError):  # a sentinel of the function's own: only itself is left out
            text = None
        return name, default, text, encode

    def _filling(self, text: str, owner: str, kind: Any) -> Filling:
        template = Template.parse(text, owner=owner, kind=kind)
        for part in template.parts:
            self._placeholders.check(part, template, owner, result=True)
        types = [self._placeholders.type_at(part, result=True) for part in template.parts]
        return Filling(template, types, self.function, self._seal)

    # --- at a call ----------------------------------------------------------------------------------------------------

    def locate(self, instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, str]:
        """The call's Redis (None too, if given; MISSING where there is none), its session (or None), and its key.

        Raises what `bind` and `key` raise.
        """
        if self.quick is not None and (instance is None or self._takes_instance is not None):
            try:
                if instance is None or not self._takes_instance:
                    return self.quick(*args, **kwargs)
                return self.quick(instance, *args, **kwargs)
            except UNSAID:
                pass  # said below
        values = self.bind(instance, args, kwargs)
        return self.redis(values), self.session(values), self.key(values)

    def bind(
        self, instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, partial: bool = False
    ) -> dict[str, Any]:
        """The call's arguments by name, defaults applied; a Redis that is not given is not there.

        Args:
            instance: what a method is bound to, or None.
            partial: what is not part of the key may be left out.

        Raises:
            TypeError: the arguments do not fit the function.
        """
        return self._binder.bind(instance, args, kwargs, partial)

    def key(self, values: Mapping[str, Any], extra: Mapping[str, str] | None = None) -> str:
        """The key of a call.

        Args:
            values: what `bind` gave.
            extra: further pairs for the query string.

        Raises:
            KeyValueError: an argument has no canonical form.
            MissingKeyFieldError: the pattern needs a keyword argument that the call does not have.
        """
        template = self._template
        if template is None:
            raise PatternError(f"{self.function}: it has no pattern, so its calls have no key")
        try:
            out: list[str] = []
            for literal, name, read, encode in self._steps:
                value = values[name]
                out.append(literal)
                out.append(encode(value if read is None else read(value)))
            out.append(template.tail)
            query = self._pairs(values) if self._query or self._kwargs is not None else []
        except (KeyValueError, AttributeError, KeyError, RecursionError):
            self._explain(values, template)
            raise
        if extra:
            query += [f"{name}={quote(text)}" for name, text in sorted(extra.items())]
        if query:
            out.append(f"?{'&'.join(query)}")
        key = "".join(out)
        if self._guarded:
            key = guard(key)
        return key if len(key) <= _SURE else fit(key)

    def _pairs(self, values: Mapping[str, Any]) -> list[str]:
        query: list[str] = []
        bound = self._first if BOUND in values else None
        for name, default, default_text, encode in self._query:
            value = values[name]
            if value is default or name == bound:
                continue
            text = encode(value)
            if text != default_text:
                query.append(f"{name}={text}")
        if self._kwargs is not None:
            encode = self._keyword_encoder
            query += [f"{quote(name)}={encode(values[name])}" for name in self._keyword_names(values)]
            query.sort()
        return query

    def _keyword_names(self, values: Mapping[str, Any]) -> set[str]:
        """Keyword arguments without a parameter of their own, less those in the pattern."""
        known = self._parameters.keys() | self._outside | {BOUND}
        return values.keys() - known if self._template is None else values.keys() - known - self._template.names

    def _explain(self, values: Mapping[str, Any], template: Template) -> None:
        """Raise what names the argument because of which there is no key."""
        for part, (_, name, read, encode) in zip(template.parts, self._steps, strict=True):
            if name not in values:
                raise MissingKeyFieldError(name, template.text) from None
            value = values[name] if read is None else attribute(read, values[name], self.function, part)
            encode_with(encode, value, self.function, part.field)
        bound = self._first if BOUND in values else None
        for name, _, _, encode in self._query:
            if name != bound:
                encode_with(encode, values[name], self.function, name)
        for name in self._keyword_names(values):
            encode_with(self._keyword_encoder, values[name], self.function, name)

    def redis(self, values: Mapping[str, Any]) -> Any:
        """The client of the call: its argument (None too, if given), else `self.redis`, else MISSING."""
        name = "redis" if self._redis is None else self._redis.name
        if name in self._outside and name in values:
            return values[name]
        if self._redis is not None and self._redis.default not in (None, MISSING):
            return self._redis.default
        return redis_of(self._instance(values))

    def session(self, values: Mapping[str, Any]) -> Any:
        """The session of the call: its argument, else `self.db`, else `self.session`, else None."""
        for name in self._session_names:
            found = values.get(name)
            if found is not None:
                return found
        instance = self._instance(values)
        return None if instance is None else session_of(instance)

    def _instance(self, values: Mapping[str, Any]) -> Any:
        name = self._first if BOUND in values else self._self
        return None if name is None else values.get(name)
