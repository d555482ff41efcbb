"""The header `Cache-Status` of RFC 9211, for every ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from contextvars import ContextVar
from typing import Any

from fastrdb import Cache, Event, default_cache

from .recording import LOOKUPS

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

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
        name: the name of the cache in the header.
        key: show the key, which may hold personal data.
    """

    def __init__(
        self, app: Any, cache: Cache | Iterable[Cache] = default_cache, *, name: str = "fastrdb", key: bool = False
    ) -> None:
        self._app, self._name, self._key = app, name, key
        for each in (cache,) if isinstance(cache, Cache) else cache:
            if _note not in each.hooks:
                each.hooks.append(_note)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        events: list[Event] = []

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and any(event.kind in _CALLS for event in events):
                headers = list(message.get("headers", ()))
                shown = next((at for at, (name, _) in enumerate(headers) if name.lower() == b"cache-status"), None)
                if shown is None:
                    headers.append((b"cache-status", self._status(events).encode("ascii")))
                elif self._key:
                    name, status = headers[shown]
                    headers[shown] = name, status + _key_part(events[0].key).encode("ascii")
                message["headers"] = headers
            await send(message)

        token = _events.set(events)
        try:
            await self._app(scope, receive, answer)
        finally:
            _events.reset(token)

    def _status(self, events: Sequence[Event]) -> str:
        keyed = [event for event in events if event.key and event.kind in _ANSWERS]
        parts = [self._name, *describe({event.kind for event in events})]
        return "; ".join(parts) + (_key_part(keyed[0].key) if self._key and keyed else "")


_ANSWERS = {*LOOKUPS, "join", "bypass", "unavailable"}
_CALLS = {*_ANSWERS, "load"}
"""The kinds of events of a cached function. A request that only writes has other events, and no header."""


def describe(kinds: set[str]) -> list[str]:
    """Return the parameters of `Cache-Status` for the kinds of a request's events."""
    if "unavailable" in kinds or "bypass" in kinds:
        return ["fwd=bypass", *(["detail=unavailable"] if "unavailable" in kinds else [])]
    if "miss" in kinds or "load" in kinds:
        stored = "fill" in kinds and "unstored" not in kinds
        return ["fwd=miss", *(["stored"] if stored else []), *(["collapsed"] if "load" not in kinds else [])]
    return ["hit", *(["detail=stale"] if "stale" in kinds else [])]


def _key_part(key: str) -> str:
    """Return the parameter with the key: a quoted string of printable ASCII."""
    plain = key.encode("ascii", "backslashreplace").decode()
    shown = "".join(each if " " <= each <= "~" else "?" for each in plain)
    return '; key="' + shown.replace("\\", "\\\\").replace('"', '\\"') + '"'
