"""Parts for FastAPI and Starlette: lifespan, dependencies, error handlers, `Cache-Status`, and `cached_response`.

`docs/fastapi.md` has an application that uses all of them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar, get_args, overload

from fastapi import Depends, Request, Response
from fastapi.params import Depends as DependsMark
from fastapi.responses import JSONResponse
from fastapi.security.base import SecurityBase
from redis.asyncio import Redis, from_url
from sqlalchemy.exc import IntegrityError, NoResultFound
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from fastrdb import Cache, OptionError, PageOutOfRange, Stored, UnknownFieldError, default_cache
from fastrdb.options import Seconds, flag, seconds

from .cache_status import HIT
from .cache_status import CacheStatus as CacheStatus

Function = TypeVar("Function", bound=Callable[..., Any])

# --- the resources of a running application


@dataclass(frozen=True, slots=True)
class Resources:
    """The client and the factory of sessions of a running application, as `app.state.fastrdb`.

    Attributes:
        redis: the client, or None.
        sessions: the factory, or None.
        like: a session that is never opened, if the factory makes all sessions alike: for keys that depend on one.
    """

    redis: Any
    sessions: Callable[[], AsyncSession] | None
    like: AsyncSession | None = None


def lifespan(
    *caches: Cache,
    redis: str | Any | None = None,
    database: str | AsyncEngine | Callable[[], AsyncSession] | None = None,
    also: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None,
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Return a lifespan: `FastAPI(lifespan=lifespan(cache, redis="redis://...", database="postgresql+asyncpg://..."))`.

    At shutdown the caches finish their work in the background. Then what was opened from an address is closed.

    Args:
        caches: the caches that the application uses.
        redis: an address, or a client, which stays open.
        database: an address, an engine, which stays open, or a factory of sessions.
        also: another lifespan, which runs inside of this one.

    Raises:
        OptionError: something else than a cache, or than a database.
    """

    _refuse_others(caches, database)

    @asynccontextmanager
    async def running(app: Any) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            client = redis
            if isinstance(redis, str):
                client = from_url(redis)
                stack.push_async_callback(client.aclose)
            sessions: Any = database
            like: AsyncSession | None = None
            if isinstance(database, str | AsyncEngine):
                engine = create_async_engine(database) if isinstance(database, str) else database
                if engine is not database:
                    stack.push_async_callback(engine.dispose)
                sessions = async_sessionmaker(engine, expire_on_commit=False)
                like = sessions()
            app.state.fastrdb = Resources(client, sessions, like)
            for cache in caches or (default_cache,):
                await stack.enter_async_context(cache)
            if also is not None:
                await stack.enter_async_context(also(app))
            yield

    return running


def _refuse_others(caches: Iterable[Any], database: Any) -> None:
    for each in caches:
        if not isinstance(each, Cache):
            raise OptionError(f"lifespan: not for {type(each).__name__}: write FastAPI(lifespan=lifespan(cache, ...))")
    if not (database is None or isinstance(database, str | AsyncEngine) or callable(database)):
        kinds = "an address, an AsyncEngine or a factory of sessions"
        raise OptionError(f"lifespan: database must be {kinds}, not {type(database).__name__}")


def _resources(app: Any) -> Resources:
    found = getattr(app.state, "fastrdb", None)
    if not isinstance(found, Resources):
        raise OptionError("fastrdb.integrations.fastapi: give the application lifespan=lifespan(cache, ...)")
    return found


def _new_session(app: Any) -> AsyncSession:
    sessions = _resources(app).sessions
    if sessions is None:
        raise OptionError("fastrdb.integrations.fastapi: a session needs lifespan(..., database=...)")
    return sessions()


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """Open a session for one request, and close it afterwards. Commits nothing."""
    async with _new_session(request.app) as session:
        yield session


async def get_client(request: Request) -> Any:
    """Return the application's client of Redis."""
    return _client(request.app)


def _client(app: Any) -> Any:
    client = _resources(app).redis
    if client is None:
        raise OptionError("fastrdb.integrations.fastapi: a client needs lifespan(..., redis=...)")
    return client


Session = Annotated[AsyncSession, Depends(get_session)]
Client = Annotated[Redis, Depends(get_client)]

# --- errors


def add_handlers(app: Any) -> None:
    """Answer errors of queries with a status: no row 404, unknown field and page past the end 422, conflict 409."""
    handlers: Sequence[tuple[type[Exception], int, str | None]] = (
        (NoResultFound, 404, "There is no such row."),
        (UnknownFieldError, 422, None),
        (PageOutOfRange, 422, None),
        (IntegrityError, 409, "The row conflicts with another one, or lacks what it must have."),
    )
    for kind, status, message in handlers:
        app.add_exception_handler(kind, _handler(status, message))


def _handler(status: int, message: str | None) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": message or str(error)}, status_code=status)

    return answer


# --- the stored JSON as the answer


@overload
def cached_response(function: Function) -> Function: ...
@overload
def cached_response(*, max_age: Seconds | None = ..., public: bool = ...) -> Callable[[Function], Function]: ...
def cached_response(function: Any = None, *, max_age: Seconds | None = None, public: bool = False) -> Any:
    """Turn a cached function into an endpoint that answers a hit with the stored JSON itself.

    The response has a strong `ETag`, `Cache-Control` from the remaining TTL, and status 304 if the client has the same.
    A `Session` of this module is opened only if the function has to run. A result that is not stored goes through the
    response model. The decorator stands between the route and `cached`:

        @app.get("/users/{user_id}")
        @cached_response
        @cached("user:{user_id}")
        async def read_user(user_id: int, db: Session, redis: Client) -> UserOut: ...

    Args:
        function: the cached function.
        max_age: the longest for which a browser may reuse the response without a request, since no invalidation
            reaches a browser; 0 for a request each time; None for the remaining TTL.
        public: whether caches that many users share may keep the answer.

    Raises:
        OptionError: an option that cannot be; not a function of `cached` or `cached_list`; or its stored JSON differs
            from the response model's.
    """
    if function is None:
        return lambda each: _Endpoint(each, max_age, public).wrapper()
    return _Endpoint(function, max_age, public).wrapper()


_SAME_MODEL: dict[str, tuple[Any, ...]] = {
    "response_model_include": (None,),
    "response_model_exclude": (None, set()),
    "response_model_exclude_unset": (False,),
    "response_model_exclude_defaults": (False,),
    "response_model_exclude_none": (False,),
    "status_code": (None, 200),
}


_NOTHING_TO_CLOSE = nullcontext()


class _Endpoint:
    """One endpoint: the cached function, the arguments from FastAPI, and those that the endpoint fills in."""

    def __init__(self, function: Any, max_age: Seconds | None, public: bool) -> None:
        self.name = getattr(function, "__qualname__", type(function).__name__)
        query = getattr(function, "query", None)
        if query is None or query.plan.ids is not None:
            raise OptionError(f"{self.name}: cached_response goes on a function of `cached` or `cached_list`")
        if (reason := query.codec.unlike_response()) is not None:
            raise OptionError(
                f"{self.name}: cached_response would answer with other JSON than the response model: {reason}. "
                "Return the value from an endpoint of your own"
            )
        self.function, self.query, self.public = function, query, flag(public, name="public", owner=self.name)
        self.max_age = math.inf if max_age is None else seconds(max_age, name="max_age", owner=self.name, zero=True)
        self.run = function.__wrapped__
        at = getattr(function, "__self__", None), ()
        self.peek, self.located = partial(query.peek, *at), partial(query.located, *at)
        self._routes: dict[int, tuple[Any, bytes]] = {}  # by identity: routes have no hash; each with its `Vary`
        given = inspect.signature(function, eval_str=True)
        if next(iter(given.parameters), "") in ("self", "cls"):
            bound = f"cached_response(items.{self.name.rpartition('.')[2]})"
            raise OptionError(f"{self.name}: cached_response goes on the method of an instance, as in {bound}")
        self._own = {name: found for name, each in given.parameters.items() if (found := _own_part(each)) is not None}
        shown = [each for name, each in given.parameters.items() if name not in self._own]
        plain = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in shown]
        # FastAPI fills one parameter of each of these types: where the function has one, it is that one.
        self._asked = _named(plain, Request) or "fastrdb_request"
        self._answered = _named(plain, Response) or "fastrdb_response"
        for name, kind in ((self._asked, Request), (self._answered, Response)):
            if name not in given.parameters:
                plain.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind))
        self._taken = frozenset(given.parameters)
        self.signature = inspect.Signature(plain, return_annotation=query.codec.type)

    def wrapper(self) -> Any:
        """Return the function that FastAPI calls."""

        async def endpoint(**arguments: Any) -> Any:
            request, response = (
                arguments[name] if name in self._taken else arguments.pop(name)
                for name in (self._asked, self._answered)
            )
            return await self.answer(request, response, arguments)

        endpoint.__name__, endpoint.__qualname__ = self.function.__name__, self.name
        endpoint.__doc__, endpoint.__module__ = self.function.__doc__, self.function.__module__
        endpoint.__signature__ = self.signature  # type: ignore[attr-defined]
        return endpoint

    async def answer(self, request: Request, response: Response, arguments: dict[str, Any]) -> Any:
        """Answer one request: with the stored JSON, or with the value for the response model."""
        if id(route := request.scope.get("route")) not in self._routes:
            self._check(route)
        async with AsyncExitStack() if self._overridden(request.app) else _NOTHING_TO_CLOSE as stack:
            session = await self._give(arguments, request.app, stack)
            # A status that a dependency has set, such as 201, has rules of its own: then FastAPI makes the response.
            plain = response.status_code is None
            stored = await self.peek(arguments, self.run) if plain else None
            if stored is not None:
                self.query.counters.count("hit", stored.key)
                ttl = b"; ttl=%d" % stored.ttl if stored.ttl < math.inf else b""
                return self._respond(request, response, stored, HIT + ttl)
            *_, key = self.located(arguments)  # the function may change its arguments
            if session is None:
                value = await self.function(**arguments)
            else:
                async with _new_session(request.app) as arguments[session]:
                    value = await self.function(**arguments)
            stored = await self.peek(arguments) if plain else None
        if stored is not None and stored.key == key:
            return self._respond(request, response, stored, b"")
        response.headers["cache-control"] = "no-store"
        return value

    def _overridden(self, app: Any) -> bool:
        """Return whether a test has overridden the session or the client."""
        overrides = getattr(app, "dependency_overrides", ())
        return get_session in overrides or get_client in overrides

    async def _give(self, arguments: dict[str, Any], app: Any, stack: AsyncExitStack | None) -> str | None:
        """Add client and session. Return the parameter whose session only stands in for the one to load with."""
        standing = None
        for name, part in self._own.items():
            override = app.dependency_overrides.get(part) if stack is not None else None
            if stack is not None and override is not None:
                arguments[name] = await _overriding(override, stack)
            elif part is get_client:
                arguments[name] = _client(app)
            else:
                arguments[name], standing = _resources(app).like or _new_session(app), name
        return standing

    def _respond(self, request: Request, response: Response, stored: Stored, status: bytes) -> Response:
        """Return the response; `response` has the headers that dependencies have set."""
        tag, given = f'"{stored.digest}"'.encode(), {name for name, _ in response.raw_headers}
        headers = [(b"etag", tag)]
        if b"cache-control" not in given:
            headers.append((b"cache-control", self._control(stored.ttl).encode()))
        if status:
            headers.append((b"cache-status", status))
        if vary := self._routes[id(request.scope.get("route"))][1]:
            headers.append((b"vary", vary))
        headers += [each for each in response.raw_headers if each[0] != b"etag"]
        known = (value for name, value in request.scope["headers"] if name == b"if-none-match")
        same = request.method in ("GET", "HEAD") and any(matches(each, tag) for each in known)
        return _Json(b"", 304, headers) if same else _Json(stored.json, 200, headers)

    def _control(self, ttl: float) -> str:
        age = int(min(ttl, self.max_age, 31_536_000))
        scope = "public" if self.public else "private"
        return f"{scope}, max-age={age}" if age else f"{scope}, no-cache"

    def _check(self, route: Any) -> None:
        """Raise OptionError for a route whose response differs from that of the function's type."""
        model = getattr(route, "response_model", self.query.codec.type)
        if model not in (None, self.query.codec.type):
            raise OptionError(f"{self.name}: cached_response answers as the function's own type, not response_model=")
        for option, same in _SAME_MODEL.items():
            if getattr(route, option, same[0]) not in same:
                raise OptionError(
                    f"{self.name}: cached_response answers with all of the JSON and 200, without {option}="
                )
        given = getattr(route, "response_class", JSONResponse)
        kind: Any = getattr(given, "value", given)  # of FastAPI's mark of a default
        if not issubclass(kind, JSONResponse) or kind.__module__.partition(".")[0] not in {"fastapi", "starlette"}:
            raise OptionError(f"{self.name}: cached_response answers with plain JSON, without response_class=")
        names = {*_varying(getattr(route, "dependant", None)), *(() if self.public else ("authorization", "cookie"))}
        self._routes[id(route)] = route, ", ".join(name.title() for name in sorted(names)).encode()


def _varying(dependant: Any) -> Iterator[str]:
    """Yield the headers, in lower case, that an endpoint and its dependencies read: another one is another request."""
    if dependant is not None:
        if isinstance(dependant.call, SecurityBase):
            model = dependant.call.model
            places = {"header": str(getattr(model, "name", "")).lower(), "cookie": "cookie", "query": "authorization"}
            yield places[getattr(getattr(model, "in_", None), "value", "query")]
        yield from (each.alias.lower() for each in dependant.header_params)
        yield from ("cookie" for _ in dependant.cookie_params)
        for each in dependant.dependencies:
            yield from _varying(each)


async def _overriding(override: Callable[[], Any], stack: AsyncExitStack) -> Any:
    """Return what a test provides instead of a session or a client; `stack` closes it."""
    if inspect.isasyncgenfunction(override):
        return await stack.enter_async_context(asynccontextmanager(override)())
    found = override()
    return await found if inspect.isawaitable(found) else found


def _own_part(parameter: inspect.Parameter) -> Any:
    """Return the dependency of this module that a parameter has, None for any other."""
    for each in (parameter.default, *get_args(parameter.annotation)[1:]):
        if isinstance(each, DependsMark) and each.dependency in (get_session, get_client):
            return each.dependency
    return None


def _named(parameters: Iterable[inspect.Parameter], kind: type) -> str | None:
    """Return the last parameter with an annotation of this type."""
    found = None
    for each in parameters:
        annotation = (get_args(each.annotation) or (each.annotation,))[0]
        if isinstance(annotation, type) and issubclass(annotation, kind):
            found = each.name
    return found


def matches(header: bytes, tag: bytes) -> bool:
    """Return whether `If-None-Match` has the tag. The comparison is the weak one of RFC 9110."""
    return header.strip() == b"*" or tag in (each.strip().removeprefix(b"W/") for each in header.split(b","))


class _Json(Response):
    """A response whose headers are given as the bytes to send: Starlette's encoding is slow."""

    def __init__(self, body: bytes, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status_code, self.body, self.background = status, body, None
        if status == 200:
            headers += ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
        self.raw_headers = headers
