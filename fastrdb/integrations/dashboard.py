"""A page that shows the state of a cache: an ASGI application to mount. Put a login before it: see docs/operations.md.

The page shows what processes publish (`Cache(publish=True)`) and what Redis holds. It changes nothing unless
`allow_invalidate=True`, and shows no value unless `show_values=True`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import parse_qs

from redis.exceptions import RedisError

from fastrdb import Cache, FastRDBError, Inspector, OptionError, PatternError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
_FOLDER = Path(__file__).with_name("page")
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_EVERY_S = 2.0
_STREAM_S = 15.0
"""A stream ends after so many seconds, and the browser opens another: a server that stops need not wait longer."""
_MOST_KEYS = 200
_MOST_BODY = 10_000
_MOST_VALUE = 100_000


class RefusedError(Exception):
    """A request that is answered with a status and a text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status, self.text = status, text


class Dashboard:
    """The ASGI application: `app.mount("/cache", Dashboard(cache))`.

    Args:
        cache: the cache, whose namespace is shown.
        redis: the client, if the cache has none of its own.
        allow_invalidate: whether the page may delete the entries under a prefix.
        show_values: whether the page shows the values of entries, which may be personal data.

    Raises:
        OptionError: neither `redis` is given nor does the cache have a client.
    """

    def __init__(
        self, cache: Cache, *, redis: Any = None, allow_invalidate: bool = False, show_values: bool = False
    ) -> None:
        client = cache.redis if redis is None else redis
        if client is None:
            raise OptionError("Dashboard: no Redis: give it redis=, or the cache one of its own")
        self._cache, self._client = cache, client
        self._inspector = Inspector(client, cache.namespace)
        self._may = {"invalidate": allow_invalidate, "values": show_values}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        match scope["type"], scope.get("method"):
            case "lifespan", _:
                await _lifespan(receive, send)
            case "websocket", _:
                await send({"type": "websocket.close"})
            case "http", "HEAD":
                await self._request({**scope, "method": "GET"}, receive, _without_body(send), 0.0)
            case "http", _:
                await self._request(scope, receive, send, _STREAM_S)

    async def _request(self, scope: Scope, receive: Receive, send: Send, stream_s: float) -> None:
        root = scope.get("root_path", "")
        path = scope["path"].removeprefix(root)
        try:
            if path == "/events" and scope["method"] == "GET":
                await self._stream(receive, send, stream_s)
            elif path == "":  # the URL of a mount without its slash, which the page's relative links need
                await _answer(send, 307, b"", {"location": f"{root}/"})
            elif path in _FILES and scope["method"] == "GET":
                name, kind = _FILES[path]
                await _answer(send, 200, (_FOLDER / name).read_bytes(), {"content-type": f"{kind}; charset=utf-8"})
            else:
                await _json(send, 200, await self._asked(scope, path, receive))
        except RefusedError as refused:
            await _json(send, refused.status, {"error": refused.text})
        except PatternError as error:
            await _json(send, 422, {"error": str(error)})
        except (RedisError, OSError, FastRDBError) as error:
            await _json(send, 503, {"error": f"Redis does not do this: {type(error).__name__}"})

    async def _asked(self, scope: Scope, path: str, receive: Receive) -> Any:
        query = {name: each[0] for name, each in parse_qs(scope["query_string"].decode("ascii", "replace")).items()}
        match scope["method"], path:
            case "GET", "/options":
                return {**self._may, "namespace": self._cache.namespace}
            case "GET", "/keys":
                found = await self._inspector.keys(query.get("prefix", ""), limit=_MOST_KEYS)
                whole = (await self._inspector.index()).whole
                return {"keys": [asdict(each) for each in found], "most": _MOST_KEYS, "whole": whole}
            case "GET", "/entry":
                return await self._entry(query.get("key", ""))
            case "POST", "/invalidate":
                return await self._invalidate(scope, receive)
        raise RefusedError(404, "There is no such page.")

    async def _entry(self, key: str) -> dict[str, Any]:
        entry, inspector = await self._inspector.entry(key), self._inspector
        found: dict[str, Any] = {"key": key, "entry": None if entry is None else asdict(entry)}
        found |= {"reasons": await inspector.reasons(key), "tags": await inspector.tags(key)}
        if self._may["values"] and entry is not None and entry.size <= _MOST_VALUE:
            raw = await inspector.value(key) or b""
            found["value"] = raw.decode("utf-8", "backslashreplace")
        return found

    async def _invalidate(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        if not self._may["invalidate"]:
            raise RefusedError(403, "The page is read-only: allow_invalidate=True allows this.")
        headers = dict(scope["headers"])
        # Against CSRF: a form of another site can send neither, and its script fails the preflight for the header.
        same_site = headers.get(b"sec-fetch-site", b"same-origin") == b"same-origin"
        if headers.get(b"x-fastrdb") != b"invalidate" or not same_site:
            raise RefusedError(403, "Only the page itself may send this request.")
        asked = await _body(receive)
        prefix = asked.get("prefix")
        if not isinstance(prefix, str) or not prefix:
            raise RefusedError(422, "Give a prefix, such as user:*")
        if asked.get("count"):
            return {"count": await self._inspector.count(prefix)}
        return {"deleted": await self._cache.invalidate(prefix, redis=self._client)}

    async def _stream(self, receive: Receive, send: Send, seconds: float) -> None:
        headers = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
        await send(_start(200, headers))
        await send({"type": "http.response.body", "body": b"retry: 1000\n\n", "more_body": True})
        gone, end = asyncio.ensure_future(_disconnected(receive)), monotonic() + seconds
        try:
            while not gone.done() and monotonic() < end:
                try:
                    published = await self._inspector.published()
                    found: Any = {"functions": Inspector.totals(published), **_processes(published)}
                except (RedisError, OSError) as error:
                    found = {"error": f"Redis does not answer: {type(error).__name__}"}
                body = f"data: {json.dumps(found, separators=(',', ':'))}\n\n".encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await asyncio.wait({gone}, timeout=_EVERY_S)
            if not gone.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()


def _processes(published: Mapping[str, Any]) -> dict[str, Any]:
    """Return the processes that publish, the time of the latest record, and the latest invalidations."""
    drops = sorted((drop for each in published.values() for drop in each["drops"]), key=lambda drop: -drop["at"])
    processes = [{name: each[name] for name in ("host", "pid", "pending", "at")} for each in published.values()]
    return {"processes": processes, "drops": drops[:50]}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive) -> dict[str, Any]:
    raw, more = b"", True
    while more:
        message = await receive()
        raw, more = raw + message.get("body", b""), message.get("more_body", False)
        if len(raw) > _MOST_BODY:
            raise RefusedError(413, "The request is too long.")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise RefusedError(422, "The request is not JSON.") from None
    return found if isinstance(found, dict) else {}


async def _lifespan(receive: Receive, send: Send) -> None:
    """Answer a server that runs this application by itself."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _without_body(send: Send) -> Send:
    """Return a function that sends the answer to HEAD: that to GET without its body."""

    async def answer(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return answer


async def _json(send: Send, status: int, found: Any) -> None:
    await _answer(send, status, json.dumps(found).encode(), {"content-type": "application/json"})


async def _answer(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    await send(_start(status, {**headers, "content-length": str(len(body))}))
    await send({"type": "http.response.body", "body": body})


def _start(status: int, headers: Mapping[str, str]) -> Message:
    every = [(name.encode(), value.encode()) for name, value in {**_HEADERS, **headers}.items()]
    return {"type": "http.response.start", "status": status, "headers": every}
