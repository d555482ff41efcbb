"""Patterns, and the keys made of them. Text in, text out.

A key can be read back in one way only. First comes the pattern's literal text with values, in which everything that
means something is escaped (see `encoding`). Then perhaps `?name=value&name=value` has the arguments that the pattern
does not name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary

from fastrdb.errors import OptionError, PatternError

from .declared import full_name
from .encoding import MARK, Encoder, has_meaningful, percent, quote

Seal = Callable[[str], str]

LIMIT_BYTES: Final = 512
"""The longest key, in bytes of UTF-8; a longer one ends in a digest."""
SURE: Final = LIMIT_BYTES // 4
"""So few characters are never more than LIMIT_BYTES."""
_KEPT_BYTES: Final = 470  # what is kept of a long key: LIMIT_BYTES less the mark and 40 hexadecimal digits
DIGEST_MARK: Final = "%h"
RESERVED_HEAD: Final = "fastrdb:"
SEALED: Final = "%y"
"""Before the hash of a text. No value reads so, and no escape."""
_HASH_BYTES: Final = 16  # two values have one hash by chance once in 2**64 values
NIL: Final = "%nil"
"""Text of `{user.id}` where `user` itself is None, which is not the same as an id of None."""

_OWN_PAIRS = re.compile(r"[?&]%(?:class|v|schema)=")
_TOKENS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")
_BRACES = {
    "pattern": re.compile(r"[^{}]*(\{[^{}]+\}[^{}]*)?"),
    "prefix": re.compile(r"[^{}]*(\{[^{}]+\}[^{}]*|\{[^{}]*)?"),  # a prefix may end inside the hash tag
}
_LITERAL_ALLOWED = {"pattern": ":&=\\{}", "prefix": ":&=\\{}%*?"}


@dataclass(frozen=True, slots=True)
class Part:
    """One placeholder with the literal text before it."""

    literal: str
    field: str
    also: str
    """The character that ends the value in this template, if a value may hold it: it is escaped in the value."""
    cut: bool = False
    """True in a prefix that does not say which character ends the value in a pattern."""

    @property
    def root(self) -> str:
        """The parameter: `user` of `{user.id}`."""
        return self.field.partition(".")[0]

    @property
    def path(self) -> tuple[str, ...]:
        """The attributes after the parameter: `("id",)` of `{user.id}`."""
        return tuple(self.field.split(".")[1:])


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern or prefix, taken apart and checked."""

    text: str
    parts: tuple[Part, ...]
    tail: str

    @classmethod
    def parse(cls, text: str, *, owner: str, kind: Literal["pattern", "prefix"]) -> Pattern:
        """Return the pattern that *text* describes, checked.

        Args:
            text: such as `"user:{email}"`.
            owner: the function (or class) it belongs to, for messages.
            kind: a pattern gives one key; a prefix many, and there `*` and `?` are wildcards.

        Raises:
            PatternError: naming *owner* and *text*.
        """
        refuse = _Refusal(owner, kind, text)
        if not isinstance(text, str):
            raise refuse("it must be a str")
        literals, fields = _split(text, refuse)
        _check_literals(literals, fields, kind, refuse)
        parts = [
            Part(literal, field, _also(after), kind == "prefix" and _is_cut(after))
            for literal, field, after in zip(literals, fields, literals[1:], strict=False)
        ]
        return cls(text, tuple(parts), literals[-1])

    @property
    def fields(self) -> tuple[str, ...]:
        """The placeholders in full, in order."""
        return tuple(part.field for part in self.parts)

    @property
    def names(self) -> frozenset[str]:
        """The parameters that the placeholders take their values from."""
        return frozenset(part.root for part in self.parts)

    @property
    def shape(self) -> str:
        """The text without the names of the placeholders."""
        return "{}".join([*(part.literal for part in self.parts), self.tail])

    @property
    def head(self) -> str:
        """The literal text before the first placeholder."""
        return self.parts[0].literal if self.parts else self.tail

    def join(self, texts: Sequence[str]) -> str:
        """Return the text with the placeholders replaced by canonical texts."""
        return "".join([part.literal + text for part, text in zip(self.parts, texts, strict=True)]) + self.tail


class _Refusal:
    """The PatternError of one pattern, without its reason."""

    def __init__(self, owner: str, kind: str, text: object) -> None:
        self._start = f"{owner}: {kind} {text!r}: "

    def __call__(self, reason: str) -> PatternError:
        return PatternError(self._start + reason)


def _split(text: str, refuse: _Refusal) -> tuple[list[str], list[str]]:
    """Return literals and placeholders, one literal more than placeholders."""
    literals, fields = [""], list[str]()
    for token in _TOKENS.finditer(text):
        field = token.group(1)
        if field is not None:
            _check_field(field, refuse)
            fields.append(field)
            literals.append("")
        elif token.group() in ("{", "}"):
            raise refuse(f"a single '{token.group()}'; write it twice for a literal brace")
        else:
            literals[-1] += token.group()[0] if token.group() in ("{{", "}}") else token.group()
    return literals, fields


def _check_field(field: str, refuse: _Refusal) -> None:
    for name in field.split("."):
        if not name.isidentifier():
            raise refuse(f"placeholder '{{{field}}}' is not a parameter or a dotted attribute of one")
        if name.startswith("_"):
            raise refuse(f"placeholder '{{{field}}}' has a name with a leading underscore")


def _check_literals(literals: list[str], fields: list[str], kind: str, refuse: _Refusal) -> None:
    whole = "\0".join(literals)  # a placeholder is one character, and may stand between the braces of a hash tag
    for literal in literals:
        wrong = has_meaningful(literal, _LITERAL_ALLOWED[kind])
        if wrong is not None:
            raise refuse(f"its literal text holds {wrong!r}, which has a meaning of its own in keys")
    if kind == "pattern" and not whole:
        raise refuse("it is empty")
    if literals[0].startswith(RESERVED_HEAD):
        raise refuse(f"it begins with '{RESERVED_HEAD}', where fastrdb keeps its own keys")
    if not _BRACES[kind].fullmatch(whole):
        raise refuse("literal braces must be one hash tag, '{{...}}' with something between")
    for between, first, second in zip(literals[1:-1], fields, fields[1:], strict=False):
        if not between or between.isalnum():
            raise refuse(f"nothing separates {{{first}}} from {{{second}}}, so that two calls could share a key")


def _also(after: str) -> str:
    """Return the first character of the literal *after* a placeholder that could end its value; "" if values hold none.

    It depends on nothing else, so that a prefix which breaks off further on escapes the same as the whole pattern.
    """
    stop = next((char for char in after if not char.isalnum()), "")
    return stop if stop and has_meaningful(stop) is None else ""


def _is_cut(after: str) -> bool:
    """Return True if a wildcard, or the end of a prefix, comes before the character that would end the value."""
    return after != "" and next((char for char in after if not char.isalnum()), "*") in "*?"


def spellings(text: str, part: Part) -> list[str]:
    """Return the text as keys may have it: escaped is the character that ends the value in the pattern."""
    ends = {char for char in text if not char.isalnum() and has_meaningful(char) is None} if part.cut else ()
    return [text, *(text.replace(char, percent(char)) for char in sorted(ends))]


def add_pairs(key: str, pairs: Mapping[str, str]) -> str:
    """Return the key with further pairs behind it: names unchanged, values quoted."""
    more = "&".join(f"{name}={quote(text)}" for name, text in sorted(pairs.items()))
    return fit(f"{key}{'&' if '?' in key else '?'}{more}")


def guard(key: str) -> str:
    """Return the key, never among fastrdb's own: a leading value of `fastrdb` has its first letter escaped."""
    return f"%66{key[1:]}" if key.startswith(RESERVED_HEAD) else key


def fit(key: str) -> str:
    """Return the key itself, or if it has more than 512 bytes its beginning and a digest of all of it."""
    if len(key) <= SURE:
        return key
    raw = key.encode()
    if len(raw) <= LIMIT_BYTES:
        return key
    return f"{cut(raw, _KEPT_BYTES)}{DIGEST_MARK}{blake2b(raw, digest_size=20).hexdigest()}"


def cut(raw: bytes, size: int) -> str:
    """Return at most *size* bytes of a key, not ending inside a character or an escape."""
    kept = raw[:size].decode("utf-8", "ignore")
    escape = kept.rfind("%", -2) if len(kept) > 1 else -1
    return kept if escape < 0 else kept[:escape]


def escaping(encode: Encoder, also: str) -> Encoder:
    """Return the encoder, with the character *also* percent-encoded in all that it writes."""
    return (lambda value: encode(value).replace(also, percent(also))) if also else encode


# --- hashed values ----------------------------------------------------------------------------------------------------


def hashed(secret: object, owner: str) -> Seal | None:
    """Return what replaces a text by its hash under *secret*, so that no key shows whose data it is; None without one.

    Equal texts have equal hashes at any place, so that a prefix still reaches the value's keys.

    Raises:
        OptionError: not bytes, or empty. The message does not show the secret.
    """
    if secret is None:
        return None
    if not isinstance(secret, bytes) or not secret:
        raise OptionError(f"{owner}: hash_keys must be a secret of at least one byte, not {type(secret).__name__}")
    keyed = blake2b(key=blake2b(secret, person=b"fastrdb keys").digest(), digest_size=_HASH_BYTES)

    def seal(text: str) -> str:
        made = keyed.copy()
        made.update(text.encode())
        return f"{SEALED}{made.hexdigest()}"

    return seal


def sealed(encode: Encoder, seal: Seal | None) -> Encoder:
    """Return the encoder with its texts replaced by hashes, that of the mark apart from that of the text before it."""
    if seal is None:
        return encode

    def encode_sealed(value: Any) -> str:
        text, mark, rest = encode(value).partition(MARK)
        if "[" in text:  # a mark inside of a container is no mark of the container
            return seal(f"{text}{mark}{rest}")
        return f"{seal(text)}{mark}{seal(rest)}" if mark else seal(text)

    return encode_sealed


# --- what a function puts behind all of its keys ----------------------------------------------------------------------
# A prefix, and the list of single keys of an invalidation, reach a key with all its variants.


class Variant:
    """The pairs of one function.

    Two classes that inherit one method may give two results for the same arguments. So only the class that defines
    the method has the keys of the pattern, and each other class has a name in its keys.

    Attributes:
        version: of the values; "" for none.
        shared: all classes that inherit the method use the same keys.
        plain: the classes whose keys are those of the pattern.
        home: module and qualified name of the class that defines the method.
    """

    __slots__ = ("version", "shared", "plain", "home", "_texts")

    def __init__(self) -> None:
        self.version, self.shared, self.home = "", True, ("", "")  # until `settle`
        self.plain: set[type] = set()
        self._texts: WeakKeyDictionary[type, str] = WeakKeyDictionary()

    def settle(self, module: str, function: str, version: str, *, shared: bool) -> None:
        """Take what is known when the function has been inspected. No key may have been made before."""
        self.home, self.version, self.shared = (module, function.rpartition(".")[0]), version, shared

    def belongs_to(self, owner: type) -> None:
        """Note that the function stands in the body of a class: of the first one, if there are several."""
        if not self.plain:
            self.plain.add(owner)

    def of_class(self, instance: Any) -> str:
        """Return the pair of the class of an instance, or of a class itself, with its separator; "" for none."""
        cls = instance if isinstance(instance, type) else type(instance)
        if cls in self.plain:
            return ""
        if (cls.__module__, cls.__qualname__) == self.home:  # defined here, or made anew by a class decorator
            self.plain.add(cls)
            return ""
        text = self._texts.get(cls)
        if text is None:
            text = self._texts[cls] = f"&%class={quote(full_name(cls))}"
        return text

    def of_version(self) -> str:
        """Return the pair of the version, with its separator; "" for none."""
        return f"&%v={quote(self.version)}" if self.version else ""


def without_variant(key: str) -> str:
    """Return the key without the pairs of its function and its session."""
    return _OWN_PAIRS.split(key, maxsplit=1)[0]
