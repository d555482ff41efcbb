"""Prefixes: which keys an invalidation reaches, for Python and for Lua in the same words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Final

from .pattern import DIGEST_MARK, Template, cut, guard

# A head is cut a little before long keys are, so that no key is cut where the head still compares.
HEAD_LIMIT: Final = 460
_WILDCARDS = re.compile(r"[*?]")
_PIECES = re.compile(r"\*+|\?|[^*?]+")


@dataclass(frozen=True, slots=True)
class Prefix:
    """A range of keys: those that begin with `head`, and whose rest matches `glob`.

    `whole`: the prefix ended in a value, which must be the whole value: then the key ends, or `:`, `?` or `&` follows.
    """

    head: str
    glob: str = "*"
    whole: bool = False

    @classmethod
    def of(cls, text: str, *, whole: bool = False) -> Prefix | None:
        """The prefix that a filled-in text means; None for the empty text, which means nothing at all."""
        if not text and not whole:
            return None
        wild = _WILDCARDS.search(text)
        head, glob = (text, "") if wild is None else (text[: wild.start()], text[wild.start() :])
        if not whole:
            glob = f"{glob.rstrip('*')}*"
        head = guard(head)
        if len(raw := head.encode()) > HEAD_LIMIT:
            kept = cut(raw, HEAD_LIMIT)
            head, glob = kept, head[len(kept) :] + glob
        return cls(head, glob, whole)

    def under(self, namespace: str) -> Prefix:
        """The same keys where each has *namespace* (its separator included) in front."""
        return replace(self, head=namespace + self.head)

    @property
    def everything(self) -> bool:
        """Whether no key is left out."""
        return not self.head and not self.filters

    @property
    def filters(self) -> bool:
        """Whether keys that begin with `head` may still be left out."""
        return self.whole or self.glob != "*"

    def range(self) -> tuple[bytes, bytes | None]:
        """First key, and the first one past the last; None if there is no such."""
        start = self.head.encode()
        return start, successor(start)

    def matches(self, key: str) -> bool:
        """Whether this prefix reaches *key*."""
        if not key.startswith(self.head):
            return False
        if not self.filters:
            return True
        body = "".join(_python(piece) for piece in _pieces(self))
        ends = self.ends(r"\Z", "[:?&]")
        raw, start = key.encode(), re.escape(self.head.encode())
        return any(re.match(start + (body + end).encode(), raw, re.DOTALL) for end in ends) or self._digest(key)

    def _digest(self, key: str) -> bool:
        # What a long key's value was cannot be read from its digest: reach it, rather than leave it stale.
        rest = key[len(self.head) :]
        at = rest.rfind(DIGEST_MARK)
        return at >= 0 if self.glob else at == 0

    def ends(self, end: str, separator: str) -> tuple[str, ...]:
        """What a pattern of it may end with: what says that the key ends there, or goes on behind a separator."""
        if self.whole:
            return end, separator
        return ("",)

    @property
    def lua(self) -> str:
        """Lua patterns, one per line (Lua has no alternation): a key in the range is reached if any is found in it.

        Empty if `head` alone decides.
        """
        return _lua_patterns(self)


@lru_cache(1024)  # a transaction asks two or three times for each of its own
def _lua_patterns(prefix: Prefix) -> str:
    if not prefix.filters:
        return ""
    start = f"^{_lua_literal(prefix.head)}"
    body = "".join(_lua(piece) for piece in _pieces(prefix))
    lines = [f"{start}{body}{end}" for end in prefix.ends("$", "[:?&]")]
    return "\n".join([*lines, f"{start}{'.-' if prefix.glob else ''}%%h"])


def successor(raw: bytes) -> bytes | None:
    """The least bytes greater than all that begin with *raw*; None if there is nothing greater."""
    kept = raw.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None


def _pieces(prefix: Prefix) -> Iterator[str]:
    """Runs of literal text, `?`, and `*`; a final `*` is left out where nothing is anchored after it."""
    glob = prefix.glob if prefix.whole else prefix.glob.rstrip("*")
    return ("*" if piece[0] == "*" else piece for piece in _PIECES.findall(glob))


def _python(piece: str) -> str:
    # One character is one byte and the bytes above ASCII after it, as precisely as Lua can say it.
    return {"*": ".*?", "?": ".[^\x01-\x7f]*"}.get(piece) or re.escape(piece)


def _lua(piece: str) -> str:
    return {"*": ".-", "?": ".[^\x01-\x7f]*"}.get(piece) or _lua_literal(piece)


def _lua_literal(text: str) -> str:
    return re.sub(r"[\^$()%.\[\]*+\-?]", r"%\g<0>", text)


def prefixes_of(template: Template, texts: Sequence[Sequence[str]]) -> list[Prefix]:
    """The prefixes that a template means.

    Args:
        texts: for each placeholder the texts that its value may have in keys. Fewer than there are placeholders (or an
            empty one): the prefix is cut there, so that more is reached, never less.
    """
    known = next((at for at, each in enumerate(texts) if not each), len(texts))
    parts = template.parts
    complete = known == len(parts)
    found: dict[Prefix, None] = {}
    for chosen in product(*texts[:known]):
        text = "".join(part.literal + value for part, value in zip(parts, chosen, strict=False))
        text += template.tail if complete else f"{parts[known].literal}*"
        prefix = Prefix.of(text, whole=complete and bool(parts) and not template.tail)
        if prefix is not None:
            found[prefix] = None
    return list(found)
