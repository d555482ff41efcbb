"""The header `Cache-Status` of RFC 9211, for every ASGI application."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

from fastrdb import Cache, Event, OptionError, default_cache
from fastrdb.events import REPAIRING, UNANSWERED

from .recording import LOOKUPS

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_TOKEN = re.compile(r"[A-Za-z*][\w:/!#$%&'*+.^`|~-]*", re.ASCII)
"""A token of RFC 8941."""
_events: ContextVar[list[Event] | None] = ContextVar("fastrdb_request", default=None)


def _note(event: Event) -> None:
    events = _events.get()
    if events is not None:
        events.append(event)


class CacheStatus:
    """ASGI middleware that adds the header `Cache-Status` (RFC 9211): how the cache answered.

    A response without a call of a cached function has no header. With several calls it is a hit if each call was one.

    Args:
        app: the application that is wrapped.
        cache: the cache, or several.
        name: the name of the cache in the header: a token, such as `shop` or `shop.example.com:8000`.
        key: show the key, which may hold personal data.

    Raises:
        OptionError: a name that is no token, such as one with a space; or something else than a cache.
    """

    def __init__(
        self, app: Any, cache: Cache | Iterable[Cache] = default_cache, *, name: str = "fastrdb", key: bool = False
    ) -> None:
        if not _TOKEN.fullmatch(name):
            raise OptionError(f"CacheStatus: name={name!r} must be a token, such as 'shop'")
        self._app, self._name, self._key = app, name, key
        for each in (cache,) if isinstance(cache, Cache) else cache:
            if not isinstance(each, Cache):
                raise OptionError(f"CacheStatus: cache must be a Cache, or several, not {type(cache).__name__}")
            if _note not in each.hooks:
                each.hooks.append(_note)
                each.runtime.leaving.append(partial(_events.set, None))

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        events: list[Event] = []

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and any(event.kind in _CALLS for event in events):
                headers = list(message.get("headers", ()))
                stored = [each for each in headers if each[0] == b"cache-status" and each[1].startswith(HIT)]
                status = b"cache-status", self._status(events, stored).encode("ascii")
                message["headers"] = [*(each for each in headers if each not in stored), status]
            await send(message)

        token = _events.set(events)
        try:
            await self._app(scope, receive, answer)
        finally:
            _events.reset(token)

    def _status(self, events: Sequence[Event], stored: Sequence[tuple[bytes, bytes]]) -> str:
        """Return the value of the header; `stored` is that of `cached_response`, whose hit is the latest event."""
        if stored:
            parts, found = [stored[0][1].decode("ascii").removeprefix("fastrdb; ")], list(events[-1:])
        else:
            parts, found = describe(events)
        key = next((event.key for event in found if event.key), "")
        return "; ".join([self._name, *parts]) + (_key_part(key) if self._key and key else "")


HIT = b"fastrdb; hit"
"""What the header of `cached_response` begins with, which the middleware completes."""
_ANSWERS = {*LOOKUPS, "join", "bypass", "unavailable"}
_CALLS = {*_ANSWERS, "load"}
"""The kinds of events of a cached function. A request that only writes has other events, and no header."""


def describe(events: Sequence[Event]) -> tuple[list[str], list[Event]]:
    """Return the parameters of `Cache-Status` for a request's events, and those events that made the difference."""
    stale = {(event.function, event.key) for event in events if event.kind == "stale"}  # by fail_safe: behind a miss
    events = [event for event in events if event.kind == "stale" or (event.function, event.key) not in stale]
    kinds = {event.kind for event in events}

    def found(*wanted: str) -> list[Event]:
        return [event for event in events if event.kind in wanted]

    if past := found("unavailable") or found("bypass"):
        away = "unavailable" in kinds or any(event.reason in (REPAIRING, UNANSWERED) for event in past)
        return ["fwd=bypass", *(["detail=unavailable"] if away else [])], past
    if missed := found("miss", "load"):
        stored = "fill" in kinds and "unstored" not in kinds
        return ["fwd=miss", *(["stored"] if stored else []), *(["collapsed"] if "load" not in kinds else [])], missed
    return ["hit", *(["detail=stale"] if stale else [])], found("stale") or found(*_ANSWERS)


def _key_part(key: str) -> str:
    """Return the parameter with the key: a quoted string of printable ASCII."""
    plain = key.encode("ascii", "backslashreplace").decode()
    shown = "".join(each if " " <= each <= "~" else "?" for each in plain)
    return '; key="' + shown.replace("\\", "\\\\").replace('"', '\\"') + '"'
