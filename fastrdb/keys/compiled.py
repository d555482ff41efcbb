"""A decorated function's twin, compiled once: it takes the same arguments, and gives their client, session and key.

Python itself binds the arguments then, as it would for the function, with the same errors, for a tenth of what
`inspect.Signature.bind` costs; and what the pattern says is done in one expression. The source text holds names only:
literals, defaults and encoders are its globals.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .declared import MISSING
from .encoding import Encoder, scalar_encoder

Locate = Callable[..., tuple[Any, Any, str]]


@dataclass(slots=True)
class Recipe:
    """What the twin is made from.

    Attributes:
        steps: of the pattern: literal text, parameter, what reads an attribute of it (or None), encoder.
        tail: the literal text behind the last of them.
        query: of the other parameters, sorted: name, default, the default's text, encoder.
        finish: is given every key if `always_finish`, else one of more than `sure` characters: it may be too long.
        redis, session: the parameter, if there is one.
        own_redis, own_session: what gives them where the call does not: is given the instance.
        instance: the parameter that holds it, if there is one.
    """

    steps: Sequence[tuple[str, str, Callable[[Any], Any] | None, Encoder]]
    tail: str
    query: Sequence[tuple[str, Any, str | None, Encoder]]
    finish: Callable[[str], str]
    always_finish: bool
    sure: int
    redis: str | None
    session: str | None
    own_redis: Callable[[Any], Any]
    own_session: Callable[[Any], Any]
    instance: str | None


def compile_locate(name: str, parameters: Sequence[inspect.Parameter], recipe: Recipe) -> Locate:
    """The twin of a function called `name` with these parameters, of which none may be `**kwargs`."""
    prefix = "_"
    while any(parameter.name.startswith(prefix) for parameter in parameters):
        prefix += "_"
    text = _Text(prefix)
    lines = [f"def locate({_signature(parameters, recipe, text)}):"]
    lines += [f"    {line}" for line in (*_key(recipe, text), *_where(recipe, text))]
    exec(compile("\n".join(lines), f"<fastrdb: {name}>", "exec"), text.names)  # noqa: S102  # only names, see above
    made: Any = text.names["locate"]
    made.__name__, made.__qualname__ = name.rpartition(".")[2], name
    located: Locate = made
    return located


class _Text:
    """Names for what the source text stands on."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.names: dict[str, Any] = {}

    def name(self, value: Any) -> str:
        """Give a name by which the text knows `value`."""
        made = f"{self.prefix}{len(self.names)}"
        self.names[made] = value
        return made

    def local(self, word: str) -> str:
        """Give a name for a variable that no parameter has."""
        return f"{self.prefix}{word}"


def _signature(parameters: Sequence[inspect.Parameter], recipe: Recipe, text: _Text) -> str:
    parts: list[str] = []
    kinds = [parameter.kind for parameter in parameters]
    for at, parameter in enumerate(parameters):
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not (
            inspect.Parameter.VAR_POSITIONAL in kinds or inspect.Parameter.KEYWORD_ONLY in kinds[:at]
        ):
            parts.append("*")
        parts.append(_parameter(parameter, recipe, text))
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY and parameter.kind not in kinds[at + 1 :]:
            parts.append("/")
    return ", ".join(parts)


def _parameter(parameter: inspect.Parameter, recipe: Recipe, text: _Text) -> str:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return f"*{parameter.name}"
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    # A Redis that is not given is not there: its default, None, is no "just run the function".
    default = MISSING if parameter.name == recipe.redis and parameter.default is None else parameter.default
    return f"{parameter.name}={text.name(default)}"


def _key(recipe: Recipe, text: _Text) -> list[str]:
    key, query, each = text.local("key"), text.local("query"), text.local("text")
    parts = []
    for literal, parameter, read, encode in recipe.steps:
        if literal:
            parts.append(text.name(literal))
        value = parameter if read is None else f"{text.name(read)}({parameter})"
        encoded = f"{text.name(encode)}({value})"
        if read is None and encode is scalar_encoder(int):  # which Python writes itself, and sooner
            encoded = f"{value} if {text.name(type)}({value}) is {text.name(int)} else {encoded}"
        parts.append(encoded)
    if recipe.tail:
        parts.append(text.name(recipe.tail))
    lines = [f'{key} = f"{"".join(f"{{{part}}}" for part in parts)}"']
    if recipe.query:
        lines.append(f'{query} = ""')
    for parameter, default, default_text, encode in recipe.query:
        pair = [f"{each} = {text.name(encode)}({parameter})"]
        if default is MISSING:
            lines += [*pair, f'{query} += f"&{parameter}={{{each}}}"']
            continue
        lines.append(f"if {parameter} is not {text.name(default)}:")
        lines += [f"    {line}" for line in (*pair, f"if {each} != {text.name(default_text)}:")]
        lines.append(f'        {query} += f"&{parameter}={{{each}}}"')
    if recipe.query:
        lines += [f"if {query}:", f'    {key} = f"{{{key}}}?{{{query}[1:]}}"']
    finish = f"{key} = {text.name(recipe.finish)}({key})"
    return [*lines, finish] if recipe.always_finish else [*lines, f"if len({key}) > {recipe.sure}:", f"    {finish}"]


def _where(recipe: Recipe, text: _Text) -> list[str]:
    own_redis, own_session = text.name(MISSING), "None"
    if recipe.instance is not None:
        own_redis = f"{text.name(recipe.own_redis)}({recipe.instance})"
        own_session = f"{text.name(recipe.own_session)}({recipe.instance})"
    lines = []
    if recipe.redis is not None:
        lines += [f"if {recipe.redis} is {text.name(MISSING)}:", f"    {recipe.redis} = {own_redis}"]
    if recipe.session is not None and recipe.instance is not None:
        lines += [f"if {recipe.session} is None:", f"    {recipe.session} = {own_session}"]
    return [*lines, f"return {recipe.redis or own_redis}, {recipe.session or own_session}, {text.local('key')}"]
