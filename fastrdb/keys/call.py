"""Calls: the plan of a decorated function, made and checked once, and what each of its calls comes to."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

from fastrdb.errors import KeyValueError, MissingKeyFieldError, OptionError, PatternError

from .compiled import Pair, Recipe, Step, Twin, cannot_change
from .declared import MISSING, attribute_type, lacks, or_none
from .encoders import encode_with, encoder_for, home_of
from .overlap import Made, attribute_of_instance, language_of, shared_key
from .pattern import Part, Pattern, Seal, Variant, sealed
from .prefix import RESULT, PrefixTemplates, Template, attribute, part_encoder, reader
from .signature import SESSIONS, IdList, Inspected, Parameter, inspect_function

UNSAID = (ValueError, AttributeError, KeyError, RecursionError, TypeError)
"""What is wrong with a call's arguments, without the name of the parameter."""


class BoundCall(NamedTuple):
    """One call: its Redis (None if given so, MISSING without one), its session or None, its key, its arguments by name.

    `key` is "" where the function has no pattern.
    """

    client: Any
    session: Any
    key: str
    arguments: Mapping[str, Any]


class BoundMany(NamedTuple):
    """One call with a list of ids: its Redis and session as of a `BoundCall`, a copy of the ids, the key of each."""

    client: Any
    session: Any
    ids: Any
    keys: list[str]


class CallPlan:
    """The calls of one decorated function. Nothing in a plan changes after it is made.

    Attributes:
        function: the function's name.
        return_type: its return annotation, MISSING without one.
        session_name: the parameter that takes its session, or None.
        may_have_more_sessions: a call may have more than one.
        where_client: how messages call its client.
        default_may_change: a default of an argument is a list, say, which the function may find changed.
        redis_optional: its parameter for Redis has the default None.
        pattern: of its keys, or None.
        variant: what stands behind all of its keys. Settled before the first key is made.
        head: what its keys begin with (but for the few that `guard` changes).
        ids: the parameter that takes a list of ids, for `cached_many`.
        templates: what its calls invalidate.

    `quick` gives Redis, session and key of a call without an instance; `locate` has better error messages.
    """

    def __init__(
        self,
        found: Inspected,
        *,
        owner: str,
        pattern: str | Pattern | None,
        prefixes: Sequence[str | Pattern],
        keys: Sequence[str | Pattern],
        ignore: Sequence[str],
        seal: Seal | None,
        many: bool,
    ) -> None:
        self.function, self.return_type, self._takes_instance = found.name, found.return_type, found.takes_instance
        self._owner, self._ignored, self._seal = owner, frozenset(ignore), seal
        self._parameters = {each.name: each for each in found.parameters}
        self._kwargs = found.of_kind(inspect.Parameter.VAR_KEYWORD)
        for name in self._ignored:
            if name not in self._parameters and self._kwargs is None:
                raise OptionError(f"{owner}: ignore names '{name}', but there is only {self._known}")
        parsed = None if pattern is None else self._parse(pattern, "pattern")
        self.ids = None
        if many and parsed is not None:
            self.ids = IdList.of(found, parsed.names, f"{owner}: pattern {parsed.text!r}")
            self._parameters = {each.name: each for each in self.ids.one_of(found).parameters}
        self.variant = Variant()
        self._recipe = self._recipe_for(parsed)
        filled = [self._template(text, "prefix") for text in prefixes if text != ""]
        self.templates = PrefixTemplates(filled, [self._template(text, "pattern") for text in keys])
        by_role = {each.role: each for each in reversed(found.parameters)}
        self.where_client = f"{found.name}: its Redis client"
        if "redis" in by_role:
            self.where_client = f"{found.name}: parameter '{by_role['redis'].name}'"
        self.session_name = by_role["session"].name if "session" in by_role else None
        sessions = [each.name for each in found.parameters if each.role == "session"]
        self._other_sessions = tuple(name for name in sessions if name != self.session_name)
        self.may_have_more_sessions = bool(self._other_sessions) or (self._kwargs is not None and not sessions)
        self.default_may_change = any(
            not (each.default is MISSING or each.name in self._ignored or cannot_change(each.default))
            for each in found.parameters
            if each.role == "value"
        )
        self.redis_optional = "redis" in by_role and by_role["redis"].default is None
        self.pattern = parsed
        self.head = "" if parsed is None else parsed.head

    @classmethod
    def of(
        cls,
        fn: Any,
        *,
        pattern: str | Pattern | None,
        prefixes: Sequence[str | Pattern] = (),
        keys: Sequence[str | Pattern] = (),
        ignore: str | Sequence[str] = (),
        decorator: str,
        seal: Seal | None = None,
        many: bool = False,
    ) -> CallPlan:
        """Return the plan for *fn*, with everything checked.

        Args:
            fn: the function, or what `inspect_function` returned for it.
            pattern: the key's pattern; None for a function that has no key.
            prefixes: what is invalidated; `{result.x}` takes the function's result.
            keys: patterns of single keys that are invalidated.
            ignore: parameters that make no difference to the result.
            decorator: its name, for messages.
            seal: what hides the values in keys, if something does.
            many: one placeholder of the pattern names a list, and stands for one element of it.

        Raises:
            PatternError: a wrong pattern or prefix, or a placeholder for what the function does not have.
            OptionError: *fn* is not a coroutine function; *ignore* names what it does not have.
        """
        found = fn if isinstance(fn, Inspected) else inspect_function(fn, decorator)
        owner, names = f"@{decorator} on {found.name}", (ignore,) if isinstance(ignore, str) else ignore
        return cls(
            found, owner=owner, pattern=pattern, prefixes=prefixes, keys=keys, ignore=names, seal=seal, many=many
        )

    # --- at decoration ------------------------------------------------------------------------------------------------

    @property
    def _known(self) -> str:
        """The names that a key may be made of, for messages."""
        names = [name for name, each in self._parameters.items() if each.role in ("value", "self")]
        return ", ".join(f"'{name}'" for name in names) or "no parameter"

    def _parse(self, text: str | Pattern, kind: Any, *, result: bool = False) -> Pattern:
        """Return the pattern, with its placeholders checked; with *result*, `{result.x}` has a value.

        Raises:
            PatternError: naming function, pattern and placeholder.
        """
        pattern = text if isinstance(text, Pattern) else Pattern.parse(text, owner=self._owner, kind=kind)
        for part in pattern.parts:
            name = part.root
            if result and name == RESULT:
                self._check_result(part, pattern.text)
                continue
            start = f"{self._owner}: {pattern.text!r}: placeholder '{{{part.field}}}'"
            parameter = self._parameters.get(name)
            if name == self._kwargs or (parameter is None and self._kwargs is None):
                raise PatternError(f"{start}: there is no parameter '{name}', only {self._known}")
            role = "value" if parameter is None else parameter.role
            if role in ("redis", "session") or (role == "self" and not part.path):
                raise PatternError(f"{start}: parameter '{name}' is its {role}, and never part of a key")
            if name in self._ignored:
                raise PatternError(f"{start}: parameter '{name}' is ignored, and never part of a key")
        return pattern

    def _check_result(self, part: Part, text: str) -> None:
        """Raise PatternError for an attribute that the model which the function returns does not have."""
        declared = self.return_type
        for name in part.path:
            if (lacking := lacks(declared, name)) is not None:
                raise PatternError(f"{self._owner}: {text!r}: {lacking}")
            declared = attribute_type(declared, (name,))

    def _type_at(self, part: Part) -> Any:
        """Return the declared type of what a placeholder stands for, MISSING if it cannot be made out."""
        found = self._parameters.get(part.root) or self._parameters.get(self._kwargs or "")
        if part.root == RESULT:
            return attribute_type(self.return_type, part.path)
        return MISSING if found is None else attribute_type(found.type, part.path)

    def _template(self, text: str | Pattern, kind: str) -> Template:
        pattern = self._parse(text, kind, result=True)
        return Template(pattern, [self._type_at(part) for part in pattern.parts], self.function, self._seal)

    def _recipe_for(self, pattern: Pattern | None) -> Recipe:
        steps: list[Step] = []
        query: list[Pair] = []
        if pattern is not None:
            for at, part in enumerate(pattern.parts):
                found = self._parameters.get(part.root) or self._parameters.get(self._kwargs or "")
                declared = MISSING if found is None else attribute_type(_type_of(found), part.path)
                encode = part_encoder(part, declared, home_of(pattern.shape, str(at), declared), self._seal)
                steps.append(Step(part, reader(part.path), encode, declared))
            aside = pattern.names | self._ignored | {self._kwargs}
            left = [each for each in self._parameters.values() if each.role == "value" and each.name not in aside]
            query = [self._pair(each, pattern) for each in sorted(left, key=lambda each: each.name)]
        return Recipe(
            self.function, self._parameters, self._ignored, pattern, steps, query, self.ids, self._seal, self.variant
        )

    def _pair(self, parameter: Parameter, pattern: Pattern) -> Pair:
        declared = _type_of(parameter)
        encode = sealed(encoder_for(declared, home_of(pattern.shape, parameter.name, declared)), self._seal)
        default = () if parameter.kind is inspect.Parameter.VAR_POSITIONAL else parameter.default
        try:
            text = None if default is MISSING else encode(default)
        except (KeyValueError, RecursionError):  # a sentinel of the function's own: only itself is left out
            text = None
        return Pair(parameter.name, encode, default, text, declared)

    def shares(self, other: CallPlan) -> str | None:
        """Return a key that calls of this function and of the other can both have; None if there is none."""
        if not (self.head.startswith(other.head) or other.head.startswith(self.head)):  # most functions, soon
            return None
        return shared_key(self._made, other._made)

    @cached_property
    def _made(self) -> Made:
        recipe, texts = self._recipe, partial(language_of, sealed=self._seal is not None)
        may_be_method = self._takes_instance is None and "." in self.function.rpartition("<locals>.")[2]
        instance = next(iter(self._parameters), None) if may_be_method else None  # is no part of a key
        values = [
            attribute_of_instance(step.part.field)
            if step.part.root in self._parameters and self._parameters[step.part.root].role == "self"
            else texts(step.declared, also=step.part.also, path=bool(step.part.path))
            for step in recipe.steps
        ]
        pairs = {
            each.name: (texts(each.declared), each.default is MISSING and each.name != instance)
            for each in recipe.query
        }
        more = texts(MISSING) if self._kwargs else ()
        return Made(self.pattern or Pattern("", (), ""), values, pairs, more, self.variant.version)

    @cached_property
    def quick(self) -> Twin:
        """The twin for a call without an instance."""
        return self._recipe.twin(bool(self._takes_instance))

    # --- at a call ----------------------------------------------------------------------------------------------------

    def locate(
        self, instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, partial: bool = False
    ) -> tuple[Any, Any, str]:
        """Return the call's Redis (None too, if given; MISSING without one), its session or None, and its key.

        Args:
            instance: what a method is bound to, or None.
            args: the positional arguments.
            kwargs: the keyword arguments.
            partial: what is not part of the key may be left out.

        Raises:
            TypeError: the arguments do not fit the function.
            KeyValueError: an argument has no canonical form.
            MissingKeyFieldError: the pattern needs a keyword argument that the call does not have.
        """
        found: tuple[Any, Any, str] = self._run(instance, args, kwargs, partial=partial)
        return found

    def other_sessions(self, given: Collection[str]) -> tuple[str, ...]:
        """Return the names of the arguments that may be further sessions, of a call with these keyword arguments."""
        if self._other_sessions or not self.may_have_more_sessions:
            return self._other_sessions
        return SESSIONS if all(name in given for name in SESSIONS) else ()

    def bind_many(
        self, instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, partial: bool = False
    ) -> BoundMany:
        """Return the call of a function that takes a list of ids. Raises what `locate` raises."""
        return BoundMany(*self._run(instance, args, kwargs, partial=partial, many=True))

    def bind(
        self, instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, partial: bool = False
    ) -> BoundCall:
        """Return the call with its arguments by name, defaults applied. Raises what `locate` raises."""
        client, session, arguments = self._run(instance, args, kwargs, partial=partial, named=True)
        key = "" if self.pattern is None else self.locate(instance, args, kwargs, partial=partial)[2]
        return BoundCall(client, session, key, arguments)

    def _run(self, instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], **kind: bool) -> Any:
        bound = instance is not None and self._takes_instance is not False
        given, takes = (instance, *args) if bound else args, bound or bool(self._takes_instance)
        try:
            return self._recipe.twin(takes, **kind)(*given, **kwargs)
        except UNSAID:
            *_, values = self._recipe.twin(takes, partial=kind.get("partial", False), named=True)(*given, **kwargs)
            self._explain(values, next(iter(values)) if takes else None, kind.get("many", False))
            raise

    def _explain(self, values: Mapping[str, Any], instance: str | None, many: bool) -> None:
        """Raise what names the argument because of which there is no key."""
        recipe, function = self._recipe, self.function
        for step in recipe.steps:
            root, field = step.part.root, step.part.field
            if root not in values:
                raise MissingKeyFieldError(field, recipe.pattern.text if recipe.pattern else "") from None
            several = [values[root]]
            if self.ids is not None and root == self.ids.parameter:
                several = self.ids.ids(values[root], function) if many else [self.ids.one(values[root], function)]
            for each in several:
                encode_with(step.encode, attribute(step.read, each, function, step.part), function, field)
        for pair in recipe.query:
            if pair.name != instance:
                encode_with(pair.encode, values[pair.name], function, pair.name)
        if (session := self._parameters.get(self.session_name or "")) is not None and session.by_name:
            encode_with(recipe.text_of_session, values[session.name], function, session.name)
        for name, value in values.items():
            if name not in self._parameters and not recipe.is_aside(name, value):
                encode_with(recipe.keyword_encoder, value, function, name)


def _type_of(parameter: Parameter) -> Any:
    """Return the declared type of an argument; None is a value of it where it is the default."""
    return or_none(parameter.type) if parameter.default is None else parameter.type
