"""The pytest plugin in other people's test runs: with pytest-asyncio in both modes, with anyio, and unused."""

from __future__ import annotations

import pytest

from tests.support.programs.projects import PLUGIN, project, run_file

__all__ = ["project"]

TWO_TESTS = """
    import pytest
    from redis.asyncio import Redis
    from fastrdb import Cache

    {mark}

    async def check(cache: Cache, client: Redis) -> None:
        calls = []

        @cache.cached("number:{{number}}")
        async def load(number: int) -> int:
            calls.append(number)
            return number

        for _ in range(2):
            assert await load(1) == 1
        assert calls == [1]  # what the other test has stored is not found
        assert await client.get(load.key(1)) == b"1"

    async def test_one(fastrdb_cache, fastrdb_client):
        await check(fastrdb_cache, fastrdb_client)
        await fastrdb_client.set("kept", "by nobody's flush")

    async def test_two(fastrdb_cache, fastrdb_client, fastrdb_namespace, fastrdb_server):
        assert fastrdb_cache.namespace == fastrdb_namespace
        assert fastrdb_server.running
        await check(fastrdb_cache, fastrdb_client)

    async def test_three(fastrdb_client):
        assert await fastrdb_client.keys("*") == [b"kept"]
"""


def run(project: pytest.Pytester, *arguments: str, mark: str = "") -> pytest.RunResult:
    """Run three tests with the plugin."""
    project.makepyfile(TWO_TESTS.format(mark=mark))
    return run_file(project, *arguments)


@pytest.mark.parametrize(
    ("arguments", "mark"),
    [
        (("--asyncio-mode=auto",), ""),
        (("--asyncio-mode=strict",), "pytestmark = pytest.mark.asyncio"),
        (("--asyncio-mode=strict",), "pytestmark = pytest.mark.anyio"),
        (("-p", "no:asyncio"), "pytestmark = pytest.mark.anyio"),
    ],
    ids=["asyncio-auto", "asyncio-strict", "anyio-beside-asyncio", "anyio"],
)
def test_fixtures_work(project: pytest.Pytester, arguments: tuple[str, ...], mark: str) -> None:
    """Each test has keys of its own on one private server, which is never flushed, and leaves none behind."""
    if "anyio" in mark:
        project.makeconftest("import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'")
    run(project, *arguments, mark=mark).assert_outcomes(passed=3)


def test_a_conftest_turns_it_on(project: pytest.Pytester) -> None:
    """As the README says; without that there is nothing of it."""
    project.makepyfile("def test_fixture(fastrdb_server): assert fastrdb_server.running")
    result = project.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'fastrdb_server' not found*"])
    project.makeconftest(f"pytest_plugins = [{PLUGIN!r}]")
    project.runpytest_subprocess().assert_outcomes(passed=1)


def test_its_fixtures_say_what_they_give(project: pytest.Pytester) -> None:
    """`pytest --fixtures` shows them with a line each."""
    output = run_file(project, "--fixtures").stdout
    for name in ("server", "client", "namespace", "cache"):
        output.re_match_lines([rf"fastrdb_{name}.*plugin.*", r"    (Yield|Return) a .*"])
