"""The blog of `fastrdb/demo/blog`: each write is seen by each read, tenants are apart, and hits are hits."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Event
from fastrdb.demo.blog import api, repository, services
from fastrdb.demo.blog.cache import cache
from fastrdb.demo.blog.models import Tenant
from fastrdb.demo.blog.schemas import AuthorIn, CommentIn, PostIn
from fastrdb.demo.blog.services import Blog
from fastrdb.testing import isolated
from fastrdb.testing.server import EmbeddedServer
from tests.support.servers.databases import Database

cache.runtime.move("blog", None)  # outside of the tests here, no commit of this process concerns it
MISSING = 9_999


@dataclass
class Town:
    """Two tenants with the same words: two authors each, two posts, and a comment on each post."""

    database: Database
    namespace: str
    ids: dict[tuple[int, str], int] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    """The keys that were loaded since the last look."""

    def hear(self, event: Event) -> None:
        """Take note of a load."""
        if event.kind == "load":
            self.loaded.append(event.key)

    def session(self) -> AsyncSession:
        """Return a session."""
        return self.database.sessions()

    async def settle(self) -> None:
        """Insert all rows."""
        async with self.session() as db:
            tenants = [Tenant(name=name) for name in ("one", "two")]
            db.add_all(tenants)
            await db.commit()
            for number, tenant in enumerate(tenants, 1):
                blog = Blog(db, tenant.id)
                self.ids[number, "tenant"] = tenant.id
                for name in ("ann", "bob"):
                    author = await blog.add_author(AuthorIn(email=f"{name}@example.com", name=name))
                    tags = ["sea", "sky"] if name == "ann" else ["sea"]
                    post = await blog.write_post(PostIn(author_id=author.id, title=name, body="...", tags=tags))
                    comment = await blog.comment(post.id, CommentIn(reader="cy", text=f"to {name}"))
                    self.ids |= {(number, name): author.id, (number, f"post of {name}"): post.id}
                    assert comment.post_id == post.id

    def mine(self, number: int) -> dict[str, int]:
        """Return the keys of a tenant's rows."""
        return {name: key for (owner, name), key in self.ids.items() if owner == number}

    async def read(self, number: int, name: str, db: AsyncSession) -> Any:
        """Return what a read answers for a tenant."""
        try:
            return await READS[name](Blog(db, self.ids[number, "tenant"]), self.mine(number))
        except NoResultFound:
            return "no such row"

    async def write(self, number: int, name: str) -> None:
        """Write for a tenant, in a session of its own."""
        async with self.session() as db:
            await WRITES[name][0](Blog(db, self.ids[number, "tenant"]), self.mine(number))

    async def look(self, number: int) -> tuple[set[str], dict[str, Any]]:
        """Return the reads of a tenant that had to load, and those whose answer was old, with the answer."""
        slow, found = set(), {}
        for name in READS:
            self.loaded.clear()
            async with self.session() as db:  # each with a snapshot of its own
                found[name] = await self.read(number, name, db)
            if self.loaded:
                slow.add(name)
        async with self.session() as db:
            with cache.disabled():
                return slow, {
                    name: given for name, given in found.items() if given != await self.read(number, name, db)
                }


Ids = dict[str, int]
READS: dict[str, Callable[[Blog, Ids], Awaitable[Any]]] = {
    "ann": lambda blog, ids: blog.authors.get(ids["ann"]),
    "bob": lambda blog, ids: blog.authors.get(ids["bob"]),
    "nobody": lambda blog, ids: blog.authors.get(MISSING),
    "both": lambda blog, ids: blog.authors.get_many([ids["ann"], ids["bob"], MISSING]),
    "authors": lambda blog, ids: blog.authors.page(),
    "number of authors": lambda blog, ids: blog.authors.count(),
    "post of ann": lambda blog, ids: blog.posts.get(ids["post of ann"]),
    "post of bob": lambda blog, ids: blog.posts.get(ids["post of bob"]),
    "posts": lambda blog, ids: blog.posts.page(),
    "number of posts": lambda blog, ids: blog.posts.count(),
    "tags": lambda blog, ids: blog.tags.page(),
    "posts of ann": lambda blog, ids: blog.posts_of(ids["ann"]),
    "posts of bob": lambda blog, ids: blog.posts_of(ids["bob"]),
    "posts with sea": lambda blog, ids: blog.posts_with("sea"),
    "posts with sky": lambda blog, ids: blog.posts_with("sky"),
    "posts with sun": lambda blog, ids: blog.posts_with("sun"),
    "comments on ann's": lambda blog, ids: blog.comments_on(ids["post of ann"]),
    "comments on bob's": lambda blog, ids: blog.comments_on(ids["post of bob"]),
    "count of ann": lambda blog, ids: blog.count_of(ids["ann"]),
    "count of bob": lambda blog, ids: blog.count_of(ids["bob"]),
}
TAGGED = {"posts with sea", "posts with sky", "posts with sun"}
"""These depend on the whole table of pairs: no statement says which tags a post had."""
SHOWN = {"post of ann", "post of bob", "posts"}
"""These show tags, whose table a new tag changes."""
COMMENTS = {"comments on ann's", "comments on bob's"}
OF_ANN = {"posts", "number of posts", "posts of ann", "count of ann"}
OF_BOB = {"posts", "number of posts", "posts of bob", "count of bob"}
WRITES: dict[str, tuple[Callable[[Blog, Ids], Awaitable[Any]], set[str], set[str]]] = {
    "add an author": (
        lambda blog, ids: blog.add_author(AuthorIn(email="dan@example.com", name="dan")),
        {"authors", "number of authors"},
        set(),
    ),
    "rename ann": (
        lambda blog, ids: blog.rename_author(ids["ann"], "anna"),
        {"ann", "authors", "number of authors", "post of ann", "posts"},
        set(),
    ),
    "write a post of ann": (
        lambda blog, ids: blog.write_post(PostIn(author_id=ids["ann"], title="new", body="...", tags=["sea"])),
        OF_ANN | TAGGED,
        TAGGED,
    ),
    "write a post with a new tag": (
        lambda blog, ids: blog.write_post(PostIn(author_id=ids["ann"], title="new", body="...", tags=["sun"])),
        OF_ANN | TAGGED | SHOWN | {"tags"},
        TAGGED | SHOWN,
    ),
    "tag ann's post otherwise": (
        lambda blog, ids: blog.tag_post(ids["post of ann"], ["sky", "sun"]),
        TAGGED | {"post of ann", "posts"},
        TAGGED,
    ),
    "comment on ann's post": (
        lambda blog, ids: blog.comment(ids["post of ann"], CommentIn(reader="eve", text="well")),
        {"comments on ann's"},
        set(),
    ),
    "delete ann's post": (
        lambda blog, ids: blog.delete_post(ids["post of ann"]),
        OF_ANN | TAGGED | {"post of ann", "comments on ann's"},
        TAGGED,
    ),
    "hand ann's posts over to bob": (
        lambda blog, ids: blog.hand_over(ids["ann"], to=ids["bob"]),
        OF_ANN | OF_BOB | TAGGED,
        set(),
    ),
    "delete bob": (
        lambda blog, ids: blog.delete_author(ids["bob"]),
        {*("bob", "authors", "number of authors"), *OF_BOB, *TAGGED, *SHOWN, *COMMENTS, "number of posts"},
        {*TAGGED, *SHOWN, *COMMENTS, "number of posts"},
    ),
}
"""Each write, the reads of its tenant that it drops, and those of the other tenant.

The posts of an author go by a rule of the database, which says nothing of their rows: what hangs on posts is dropped as
a whole.
"""


@pytest.fixture
async def town(client: Redis, database: Database) -> AsyncIterator[Town]:
    """Provide the blog on a database, in a process that has written before: it has met the columns in use."""
    await api.create_tables(database.engine)
    async with isolated(cache, redis=client) as namespace:
        made = Town(database, namespace)
        cache.hooks.append(made.hear)
        try:
            await made.settle()
            await made.look(1)
            async with made.session() as db:
                await Blog(db, made.ids[1, "tenant"]).rename_author(made.ids[1, "bob"], "bobby")
            yield made
        finally:
            cache.hooks.remove(made.hear)


async def test_each_write_is_seen_by_every_read(town: Town) -> None:
    """After each write, each cached answer is that of the database, and what the write has not changed is a hit."""
    for number in (1, 2):
        await town.look(number)
        assert await town.look(number) == (set(), {})
    for name, (_, own, other) in WRITES.items():
        await town.write(1, name)
        assert (name, *await town.look(1)) == (name, own, {})
        assert (name, *await town.look(2)) == (name, other, {})


def test_no_write_names_what_it_invalidates() -> None:
    """No function is decorated for it, no text says it, and the cache finds nothing to complain of."""
    assert {info.decorator for info in cache.functions()} == {"cached", "cached_list", "cached_many"}
    for module in (api, repository, services):
        assert not re.search("invalidat|depends_on|touches", inspect.getsource(module))
    assert cache.check() == []


# --- over HTTP


@dataclass
class Reader:
    """A caller of the API, for one tenant."""

    town: Town
    http: httpx.AsyncClient
    number: int = 1

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request; `{ann}` and the like in the path are keys of rows."""
        keys = {name.replace(" ", "_"): key for name, key in self.town.mine(1).items()}
        headers = {"X-Tenant": str(self.town.ids[self.number, "tenant"]), **options.pop("headers", {})}
        return await self.http.request(method, path.format(**keys), headers=headers, **options)

    async def status(self, path: str) -> str:
        """Return what `Cache-Status` says of a GET."""
        return (await self.ask("GET", path)).headers["cache-status"]


@pytest.fixture
async def reader(town: Town) -> AsyncIterator[Reader]:
    """Provide a caller of tenant one."""
    app = api.create_app(town.database.engine)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield Reader(town, http)


only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@only_sqlite
async def test_page_is_stored_json_until_a_part_of_it_changes(reader: Reader) -> None:
    """The page is made of cached parts, and depends on what these depend on."""
    page = "/posts/{post_of_ann}"
    first, second = await reader.ask("GET", page), await reader.ask("GET", page)
    assert first.json() == second.json()
    assert first.headers["cache-status"].startswith("fastrdb; fwd=miss; stored")
    assert second.headers["cache-status"].startswith("fastrdb; hit; ttl=")
    known = {"if-none-match": second.headers["etag"]}
    assert (await reader.ask("GET", page, headers=known)).status_code == 304
    writes: list[tuple[str, str, Any]] = [
        ("POST", "/posts/{post_of_ann}/comments", {"json": {"reader": "eve", "text": "well"}}),
        ("PUT", "/authors/{ann}/name", {"params": {"name": "anna"}}),
        ("PUT", "/posts/{post_of_ann}/tags", {"json": ["sun"]}),
        ("POST", "/posts", {"json": {"author_id": reader.town.ids[1, "ann"], "title": "more", "body": "..."}}),
    ]
    changed = first
    for method, path, body in writes:
        assert (await reader.ask(method, path, **body)).is_success
        changed = await reader.ask("GET", page, headers=known)
        assert changed.status_code == 200
        known = {"if-none-match": changed.headers["etag"]}
        assert (await reader.ask("GET", page, headers=known)).status_code == 304
    assert changed.json() == {
        "post": {
            **first.json()["post"],
            "author": {**first.json()["post"]["author"], "name": "anna"},
            "tags": [{"id": changed.json()["post"]["tags"][0]["id"], "name": "sun"}],
        },
        "comments": [*first.json()["comments"], {**changed.json()["comments"][1], "text": "well"}],
        "posts_of_author": 2,
    }
    assert (await reader.ask("DELETE", "/posts/{post_of_ann}")).status_code == 204
    assert (await reader.ask("GET", page, headers=known)).status_code == 404
    assert (await reader.ask("DELETE", "/posts/{post_of_ann}")).status_code == 404


@only_sqlite
@pytest.mark.parametrize("path", ["/authors/{ann}", "/posts/{post_of_ann}"])
async def test_tenant_finds_no_row_of_another(reader: Reader, path: str) -> None:
    """Neither before nor after the other has filled the cache."""
    other = Reader(reader.town, reader.http, 2)
    assert (await other.ask("GET", path)).status_code == 404
    assert (await reader.ask("GET", path)).status_code == 200
    assert (await other.ask("GET", path)).status_code == 404


@only_sqlite
async def test_tenants_with_the_same_words_have_lists_of_their_own(reader: Reader) -> None:
    """A tag of the same name is another tag."""
    other = Reader(reader.town, reader.http, 2)
    lists = [(await each.ask("GET", "/tags/sea/posts")).json() for each in (reader, other, reader, other)]
    assert lists[:2] == lists[2:]
    assert not {each["id"] for each in lists[0]} & {each["id"] for each in lists[1]}


@only_sqlite
async def test_row_that_is_not_there_is_a_hit_until_it_comes(reader: Reader) -> None:
    """404 is cached, and an INSERT drops it."""
    absent = f"/authors/{max(reader.town.ids.values()) + 1}"
    for _ in range(2):
        answer = await reader.ask("GET", absent)
        assert (answer.status_code, answer.json()) == (404, {"detail": "There is no such row."})
    assert await reader.status(absent) == "fastrdb; hit"
    while True:
        added = await reader.ask("POST", "/authors", json={"email": secrets.token_hex(4), "name": "new"})
        if f"/authors/{added.json()['id']}" == absent:
            break
    assert (await reader.ask("GET", absent)).json() == added.json()


@only_sqlite
async def test_several_authors_are_read_at_once(reader: Reader) -> None:
    """Only those that are not cached are loaded; the others come in one round trip."""
    ann, bob = (reader.town.ids[1, name] for name in ("ann", "bob"))
    await reader.ask("GET", "/authors/{ann}")
    reader.town.loaded.clear()
    found = await reader.ask("GET", "/authors", params={"id": [bob, ann, MISSING]})
    assert [each["id"] for each in found.json()] == [bob, ann]
    assert not any(key.endswith(f":{ann}") for key in reader.town.loaded)
    assert (await reader.ask("GET", "/authors", params={"id": [bob, ann, MISSING]})).headers["cache-status"] == (
        "fastrdb; hit"
    )


@only_sqlite
async def test_mistakes_of_callers_have_a_status(reader: Reader) -> None:
    """A conflict, a row of another tenant, no tenant at all."""
    twice = {"email": "ann@example.com", "name": "ann"}
    assert (await reader.ask("POST", "/authors", json=twice)).status_code == 409
    strange = {"author_id": reader.town.ids[2, "ann"], "title": "mine", "body": "..."}
    assert (await reader.ask("POST", "/posts", json=strange)).status_code == 404
    assert (await reader.http.get("/authors/1")).status_code == 422


# --- a worker


WORKER = """
import asyncio, sys

from sqlalchemy import update
from sqlalchemy.ext.asyncio import create_async_engine

from fastrdb.demo.blog.cache import cache
from fastrdb.demo.blog.models import Author


async def main(url, namespace, author_id):
    cache.runtime.move(namespace, cache.redis)
    engine = create_async_engine(url)
    async with cache, engine.begin() as connection:
        await connection.execute(update(Author).where(Author.id == author_id).values(name="by the worker"))
    await cache.redis.aclose()
    await engine.dispose()


assert not cache.functions()
asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@only_sqlite
async def test_worker_that_only_writes_is_seen(town: Town, server: EmbeddedServer) -> None:
    """Another process, which imports the cache and the models, and none of the cached functions."""
    await town.look(1)
    url = town.database.engine.url.render_as_string(hide_password=False)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, url, town.namespace, str(town.ids[1, "ann"])),
        env={**os.environ, "REDIS_URL": server.url},
    )
    assert await process.wait() == 0
    slow, old = await town.look(1)
    assert (slow, old) == ({"ann", "authors", "number of authors", "post of ann", "posts"}, {})
