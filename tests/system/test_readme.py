"""The README is a program: each of its blocks is run as it stands there."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache
from fastrdb.demo.cache import get_redis, open_redis
from fastrdb.demo.database import async_get_db, open_database
from fastrdb.demo.models import User
from fastrdb.demo.schemas import UserCreate, UserResponse, UserUpdate
from fastrdb.typing import Options
from tests.support.programs.projects import project, run_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastrdb.testing.server import EmbeddedServer

__all__ = ["project"]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
SMALLEST, DECORATORS, MANY, CRUD, NEAR, FASTAPI, TESTING = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
DEMO_COMMAND, TEST_COMMAND = (each.strip() for each in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[:2])


async def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a block, which may await at its top level, with these names; give the names afterwards."""
    compiled = compile(code, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    result = eval(compiled, names)  # the README's own code
    if inspect.isawaitable(result):
        await result
    return names


@pytest.fixture
async def names(server: EmbeddedServer, client: Redis, tmp_path: Path) -> AsyncIterator[dict[str, Any]]:
    """Give what the README's blocks take for granted: the tutorial's models, a session, a client."""
    async with (
        open_database(f"sqlite+aiosqlite:///{tmp_path / 'readme.db'}"),
        open_redis(server.url),
        get_redis() as redis,
        async_get_db() as db,
    ):
        yield {
            "AsyncSession": AsyncSession,
            "Redis": Redis,
            "User": User,
            "UserCreate": UserCreate,
            "UserResponse": UserResponse,
            "UserUpdate": UserUpdate,
            "async_get_db": async_get_db,
            "db": db,
            "get_redis": get_redis,
            "redis": redis,
            "select": select,
            "update": update,
        }


async def test_the_smallest_program_runs(server: EmbeddedServer, client: Redis, tmp_path: Path) -> None:
    """It prints the old name twice and the new one once, and leaves the entry in Redis as plain JSON."""
    program = tmp_path / "smallest.py"
    program.write_text(SMALLEST.replace("Redis()", f"Redis(port={server.port})"), "utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    lines = output.decode().splitlines()
    assert process.returncode == 0, output.decode()
    assert lines == ["email='john@example.com' name='John'"] * 2 + ["email='john@example.com' name='Johnny'"]
    assert await client.get("user:john@example.com") == b'{"email":"john@example.com","name":"Johnny"}'


async def test_the_decorators_work_as_shown(names: dict[str, Any]) -> None:
    """The cached reads follow the write, under the keys that the README names."""
    await run(CRUD.partition("user = await")[0], names)
    asked = {"db": names["db"], "redis": names["redis"]}
    await names["user_crud"].create(**asked, obj_in=UserCreate(email="a@example.com", name="A"))
    await run(DECORATORS, names)
    get, listed = names["get_user"], names["list_users"]
    before = [await get(**asked, email="a@example.com"), *await listed(**asked, order_by="name")]
    await names["rename"](**asked, email="a@example.com", name="B")
    after = [await get(**asked, email="a@example.com"), *await listed(**asked, order_by="name")]
    assert [user.name for user in before] == ["A", "A"]
    assert [user.name for user in after] == ["B", "B"]
    assert {type(user) for user in before} == {UserResponse}
    assert names["get_user"].key(email="a@example.com") == "user:email:a@example.com"
    assert names["list_users"].key(order_by="name") == "user:page:1:limit:10?order_by=name"


async def test_many_ids_work_as_shown(names: dict[str, Any]) -> None:
    """The block's function is called with what is missing only, and gives the schema by id."""
    await run(CRUD.partition("user = await")[0], names)
    asked = {"db": names["db"], "redis": names["redis"]}
    made = [
        await names["user_crud"].create(**asked, obj_in=UserCreate(email=f"{name}@example.com", name=name))
        for name in "AB"
    ]
    await run(MANY, names)
    get, ids = names["get_users"], [user.id for user in made]
    for _ in range(2):
        assert await get(**asked, ids=[ids[1], 10**6, ids[0]]) == {ids[1]: made[1], ids[0]: made[0]}
    assert (get.stats.hits, get.stats.loads) == (3, 3)
    assert get.key(ids=1) == "user:id:1"


async def test_the_crud_class_works_as_shown(names: dict[str, Any]) -> None:
    """The block runs from creation to deletion, and its answers follow each other."""
    found = await run(CRUD, names)
    assert found["user"].name == "B"
    assert [user.name for user in found["users"]] == ["B"]
    assert found["page"].total == 1
    assert await found["user_crud"].count(db=found["db"]) == 0


async def test_the_near_cache_works_as_shown(names: dict[str, Any]) -> None:
    """The block's function is answered by the process, once the server tells of changes."""
    await run(CRUD.partition("user = await")[0], names)
    asked = {"db": names["db"], "redis": names["redis"]}
    await names["user_crud"].create(**asked, obj_in=UserCreate(email="a@example.com", name="A"))
    await run(NEAR, names)
    get = names["get_user_near"]
    async with names["cache"]:
        while not get.stats.near:
            assert (await get(**asked, email="a@example.com")).name == "A"


async def test_the_fastapi_block_works_as_shown(names: dict[str, Any]) -> None:
    """Its route answers a user, and 404 for none."""
    await run(CRUD.partition("user = await")[0], names)
    await run(FASTAPI, names)
    user = UserCreate(email="a@example.com", name="A")
    await names["user_crud"].create(db=names["db"], redis=names["redis"], obj_in=user)
    transport = httpx.ASGITransport(names["app"])
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        assert (await http.get("/users/a@example.com")).json()["name"] == "A"
        assert (await http.get("/users/b@example.com")).status_code == 404


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_the_tests_run_as_shown(project: pytest.Pytester, mode: str) -> None:
    """In a project of somebody's own, with the plugin that comes with the package."""
    project.makepyfile(TESTING)
    run_file(project, f"--asyncio-mode={mode}").assert_outcomes(passed=3)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    """CI does what the README says, and nothing that it does not."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands[-1] == TEST_COMMAND
    assert len(commands) == 4  # set, cd, export CI, the command
    assert DEMO_COMMAND.endswith("python -m fastrdb demo")


def test_every_option_is_in_the_readme() -> None:
    """The tables of options name all that `cached` and `Cache` take."""
    taken = {*Options.__annotations__, *inspect.signature(Cache.__init__).parameters} - {"self", "redis"}
    assert [name for name in sorted(taken) if f"`{name}`" not in README] == []
