"""The decorated functions of one cache: the keys of each, what each invalidates, and what is likely to be a mistake.

Nothing here runs in a call, but for one look at the first write of a function.
"""

from __future__ import annotations

import gc
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType, NoneType
from typing import Any, get_args
from weakref import WeakValueDictionary

from .errors import PatternError
from .events import Counters, Stats
from .keys import CallPlan, Pattern

logger = logging.getLogger("fastrdb")

SHORT_S = 60.0
"""An `exp` of at most so many seconds needs no invalidation: entries end by time."""
_MOST_HEADS = 10
"""So many beginnings of keys are named in a message."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is likely to be a mistake: the function, what there is, and what to do."""

    function: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.function}: {self.what}; {self.advice}"


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """One decorated function of a cache, with its counts in this process.

    `pattern` is that of its keys, or "" for a function that only invalidates. `options` are those that were given.
    `unstored` has the causes for which results were not stored, and how often. `dropped` has the prefixes under which
    its invalidations have deleted entries, and how many; of followed writes, the tables.
    """

    function: str
    decorator: str
    pattern: str
    options: Mapping[str, Any]
    stats: Stats
    unstored: Mapping[str, int]
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(eq=False)
class Registered:
    """One decorated function, for as long as the function itself lives.

    Attributes:
        function, module: where the function is defined: the same again is a new version of the same function.
        decorator: the name of the decorator.
        pattern: of the keys; None for a function that only invalidates.
        type: of the values.
        shared: another function may use the same keys.
        ends: entries end by time, or never: nothing needs to invalidate them.
        prefixes: what the function invalidates.
        wide: prefixes that delete all entries of the function's own class at each write.
        reads: the tables that its loads have read, where these are followed.
        of_subclass: a method of a generic class, in a subclass. Its keys are those of the method, which has a place
            of its own.
        code: of the function; a factory gives all that it makes one code.
        fixed: defaults of its parameters, and the object that a method is bound to.
        plan: of a function that has keys.
    """

    function: str
    module: str
    decorator: str
    counters: Counters
    options: Mapping[str, Any]
    pattern: Pattern | None = None
    type: Any = None
    shared: bool = False
    ends: bool = False
    prefixes: Sequence[Pattern] = ()
    wide: Sequence[str] = ()
    written: bool = False
    reads: set[str] = field(default_factory=set)
    of_subclass: bool = False
    code: CodeType | None = None
    fixed: Any = None
    plan: CallPlan | None = None

    @property
    def owner(self) -> str:
        """The function, for messages."""
        return self.function if self.decorator == "FastRDB" else f"@{self.decorator} on {self.function}"

    @property
    def form(self) -> str:
        """The pattern without the names of its placeholders: what two functions with the same keys share."""
        return "" if self.pattern is None else self.pattern.join(["{}"] * len(self.pattern.parts))


class Registry:
    """The decorated functions of one cache, in the order of decoration."""

    def __init__(self, beside: Callable[[], Iterable[Registry]] = tuple) -> None:
        """Take `beside`, which returns the registries of other caches whose functions may have the same keys."""
        self._beside = beside
        self._functions: WeakValueDictionary[int, Registered] = WeakValueDictionary()
        self._next = 0

    def __iter__(self) -> Iterator[Registered]:
        return iter(list(self._functions.values()))

    def add(self, new: Registered) -> Registered:
        """Take a function, and say once what is wide. Raises PatternError for the keys of another function."""
        found = self._same_keys(new, lambda: [self])
        if found is not None:
            raise PatternError(f"{found.function}: {found.what}: {found.advice}")
        self._functions[self._next] = new
        self._next += 1
        patterns = new.prefixes or ([] if new.pattern is None else [new.pattern])
        new.counters.prefixes = [(_literal(each), bool(each.parts), each.text) for each in patterns]
        for text in new.wide:
            logger.info("%s", _wide(new, text))
        self.warn(new)
        return new

    def warn(self, new: Registered | None = None) -> None:
        """Say of this function, or of each one, that a function of another cache has the same keys.

        That is no error: a cache that is made anew may have functions of the one before for a while. Functions inside
        of other functions are left out, such as those of a test: these come and go with their caches.
        """
        for found in self._same_elsewhere(self if new is None else [new]):
            logger.warning("%s", found)

    def _same_elsewhere(self, functions: Iterable[Registered]) -> Iterator[Finding]:
        if any(True for _ in self._beside()):
            lasting = (each for each in functions if "<locals>" not in each.function)
            yield from filter(None, (self._same_keys(each, self._beside) for each in lasting))

    def _same_keys(self, function: Registered, registries: Callable[[], Iterable[Registry]]) -> Finding | None:
        """Return the first function there that makes the keys of this one, too."""

        def first() -> Finding | None:
            others = ((other, registry is self) for registry in registries() for other in registry)
            of_keys = (
                (each, here)
                for each, here in others
                if each.pattern is not None and not each.of_subclass and (here or "<locals>" not in each.function)
            )
            return next((found for each in of_keys if (found := _same_keys(function, *each)) is not None), None)

        if function.of_subclass or function.pattern is None or first() is None:
            return None
        gc.collect()  # the other function may be gone already: wrappers and their classes refer to each other
        return first()

    def infos(self) -> list[FunctionInfo]:
        """Return what there is to say of each function."""
        return [
            FunctionInfo(
                each.function,
                each.decorator,
                "" if each.pattern is None else each.pattern.text,
                dict(each.options),
                each.counters.snapshot(),
                dict(each.counters.causes),
                dict(each.counters.dropped),
            )
            for each in self
        ]

    def first_write(self, writer: Registered) -> None:
        """Say which prefixes of a function reach no cached function's keys, once, at its first write."""
        writer.written = True
        for found in self._reaching_nothing(writer) if self._heads() else ():
            logger.warning("%s: %s", writer.owner, found.what)

    def findings(self) -> list[Finding]:
        """Return what is likely to be a mistake."""
        found = [*self._of_one_factory(), *self._same_elsewhere(self)]  # first: others hold functions that may be gone
        reached = [prefix for each in self for prefix in each.prefixes]
        for each in self:
            if each.prefixes:
                found += self._reaching_nothing(each)
            found += [_wide(each, text) for text in each.wide]
            if each.pattern is None:
                continue
            if not each.ends and not any(_reaches(prefix, each.pattern) for prefix in reached):
                found.append(
                    Finding(
                        each.function,
                        f"no @invalidates and no FastRDB of this cache reaches its keys, {each.pattern.text!r}",
                        "invalidate them where their rows are written, or say never_invalidated=True",
                    )
                )
            found += _never_stored(each.counters)
        return found

    def _of_one_factory(self) -> Iterable[Finding]:
        """Yield a finding for each factory whose functions have the same keys, and may differ.

        What differs is a closure, a default, a class, or the object that a method is bound to.
        """

        def made() -> Iterator[tuple[Registered, int]]:
            found = defaultdict[Any, list[Registered]](list)
            for each in self:
                if None not in (each.code, each.pattern, each.plan) and not each.shared and not each.of_subclass:
                    found[each.code, each.function, each.form].append(each)
            for (code, *_), same in found.items():
                ways = {(repr(each.fixed), *each.plan.variant.plain) for each in same if each.plan is not None}
                if len(same) > 1 and (code.co_freevars or len(ways) > 1):
                    yield same[0], len(same)

        if any(True for _ in made()):
            gc.collect()  # the others may be gone already
        for each, count in made():
            yield Finding(
                each.function,
                f"{count} functions that one factory has made have the same keys, {each.form!r}",
                "put what differs between them into the pattern, or say shared=True if it changes no value",
            )

    def _heads(self) -> list[str]:
        return list(dict.fromkeys(each.pattern.head or "*" for each in self if each.pattern is not None))

    def _reaching_nothing(self, writer: Registered) -> Iterable[Finding]:
        patterns, heads = [each.pattern for each in self if each.pattern is not None], self._heads()
        known = ", ".join(heads[:_MOST_HEADS]) + (", ..." if len(heads) > _MOST_HEADS else "")
        for prefix in writer.prefixes:
            if not any(_reaches(prefix, pattern) for pattern in patterns):
                yield Finding(
                    writer.function,
                    f"no cached function of this cache has keys under {prefix.text!r} (there are: {known or 'none'})",
                    "correct the prefix, or the pattern",
                )


def _reaches(prefix: Pattern, pattern: Pattern) -> bool:
    """Return whether a prefix may reach keys of a pattern, as far as the texts before placeholders say."""
    head = _literal(prefix)
    if pattern.head.startswith(head):
        return True
    return bool(pattern.parts) and head.startswith(pattern.head)


def _literal(prefix: Pattern) -> str:
    """Return what all keys under a prefix begin with, before placeholders and globs."""
    return prefix.head.partition("*")[0].partition("?")[0]


def _same_keys(new: Registered, other: Registered, here: bool) -> Finding | None:
    # The same function may be reloaded; or made once more by a factory, or decorated once more, with the same type.
    if (new.module, new.function) == (other.module, other.function) and (
        new.code is not other.code or _bare(new.type) == _bare(other.type)
    ):
        return None
    key = None
    if other.form != new.form:
        key = None if new.plan is None or other.plan is None else new.plan.shares(other.plan)
        if key is None:
            return None
    theirs = f"{_text(other)} of {other.function}" + ("" if here else " in another cache")
    what = f"{_text(new)} makes the same keys as {theirs}"
    if key is not None:
        what = f"{_text(new)} makes the key {key!r}, and so does {theirs}"
    advice = "give one of the two another pattern" + ("" if here else ", or one of the two caches a namespace")
    if _bare(new.type) != _bare(other.type):
        return Finding(new.function, f"{what}, whose values have another type", advice)
    if new.shared and other.shared:
        return None
    advice += ", or say shared=True on both if both give the same values"
    return Finding(new.function, f"{what}, so that one answers for the other", advice)


def _text(function: Registered) -> str:
    return repr("" if function.pattern is None else function.pattern.text)


def _bare(kind: Any) -> Any:
    """Return the type of a value that is there: each decorator has its own way to say that one is missing."""
    rest = [each for each in get_args(kind) if each is not NoneType]
    return rest[0] if len(rest) == 1 and NoneType in get_args(kind) else kind


def _wide(function: Registered, text: str) -> Finding:
    return Finding(
        function.function,
        f"each write deletes all that lies under {text!r}, which is every entry of its own pattern",
        "leave the prefix out: a write invalidates the keys of its row, and the lists, by itself",
    )


def _never_stored(counters: Counters) -> Iterable[Finding]:
    if counters.counts["fill"] or not counters.causes:
        return
    cause, count = max(counters.causes.items(), key=lambda item: item[1])
    yield Finding(counters.function, f"none of its results was stored: {cause} ({count} times)", "see its explain()")
