"""The README and the pages of `fastrdb/docs` are programs: each block runs as it stands, and each link leads on."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
from typing import TYPE_CHECKING, Any, get_args

import pytest
from redis.asyncio import Redis

from fastrdb import Cache
from fastrdb.cli.commands import cli
from fastrdb.demo.cache import get_redis, open_redis
from fastrdb.demo.database import async_get_db, open_database
from fastrdb.demo.models import User
from fastrdb.events import Kind
from fastrdb.loading.policy import Policy
from fastrdb.typing import Options
from tests.support import ROOT
from tests.support.programs.projects import project, run_file
from tests.support.source.modules import FILES, PACKAGE, imports_of, name_of, tree_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastrdb.testing.server import EmbeddedServer

__all__ = ["project"]

DOCS = ROOT / "fastrdb" / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.glob("*.md"))
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
OUTSIDE = {"build/benchmarks", "conftest.py"}
"""What reads like a path and is none of this repository."""
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page: Path, kind: str) -> list[str]:
    """Return the blocks of one kind: `python` runs in order, `python pytest` is a file of tests of its own."""
    return [block["code"] for block in FENCE.finditer(page.read_text("utf-8")) if block["kind"] == kind]


def pages_with(kind: str, *besides: Path) -> list[Path]:
    """Return the pages, and others besides, that have blocks of a kind."""
    return [page for page in [*besides, *PAGES] if blocks(page, kind)]


def name_of_page(page: Path) -> str:
    """Return what a test of a page is called."""
    return page.stem


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as code hosts make them."""
    text = FENCE.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


async def run(code: str, name: str, names: dict[str, Any]) -> None:
    """Run a block, which may await at its top level, with these names."""
    compiled = compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    result = eval(compiled, names)  # the page's own code
    if inspect.isawaitable(result):
        await result


@pytest.fixture
async def names(server: EmbeddedServer, client: Redis, tmp_path: Path) -> AsyncIterator[dict[str, Any]]:
    """Yield the names that the pages take for granted: a session, a client, and what opens them in the demo."""
    async with (
        open_database(f"sqlite+aiosqlite:///{tmp_path / 'documents.db'}"),
        open_redis(server.url),
        get_redis() as redis,
        async_get_db() as db,
    ):
        assert User.__table__ is not None  # imported, so that its table was made
        yield {
            "async_get_db": async_get_db,
            "get_redis": get_redis,
            "db": db,
            "redis": redis,
            "__name__": "page",
        }


@pytest.mark.parametrize(
    "page", [page for page in (README, *PAGES) if blocks(page, "python")], ids=lambda page: page.stem
)
async def test_blocks_of_a_page_run_in_order(page: Path, names: dict[str, Any], monkeypatch: Any) -> None:
    """A page is one program. Its own assertions say what comes out."""
    monkeypatch.setitem(sys.modules, "page", type(sys)("page"))  # annotations of dataclasses are read from there
    for number, code in enumerate(blocks(page, "python")[page == README :], 1):  # its first is run by itself
        await run(code, f"{page.name}, block {number}", names)


async def test_the_first_program_prints_the_same_twice(server: EmbeddedServer, client: Redis, tmp_path: Path) -> None:
    """The second run finds the first one's row and entry, and shows none of them old."""
    program = tmp_path / "first.py"
    program.write_text(blocks(README, "python")[0].replace("Redis()", f"Redis(port={server.port})"), "utf-8")
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(program), cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        assert (process.returncode, output.decode()) == (0, blocks(README, "")[0])
        assert await client.get("user:ann@example.com") == b'{"email":"ann@example.com","name":"Anna"}'


@pytest.mark.parametrize("mode", ["strict", "auto"])
@pytest.mark.parametrize("page", pages_with("python pytest"), ids=name_of_page)
def test_files_of_tests_run_as_shown(project: pytest.Pytester, page: Path, mode: str) -> None:
    """The files run in a project of a user's own, with the plugin that comes with the package."""
    for number, code in enumerate(blocks(page, "python pytest")):
        project.makepyfile(**{f"test_block_{number}": code})
    outcomes = run_file(project, f"--asyncio-mode={mode}").parseoutcomes()
    assert set(outcomes) == {"passed"}


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of_page)
def test_links_lead_to_something(page: Path) -> None:
    """Each relative link names a file that exists, and an anchor that the file has."""
    text = FENCE.sub("", page.read_text("utf-8"))
    wrong = []
    for link in LINK.findall(text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong


def test_each_page_is_linked_from_the_readme() -> None:
    """A page that nothing leads to is not read."""
    linked = {link.partition("#")[0] for link in LINK.findall(README.read_text("utf-8"))}
    assert {f"fastrdb/docs/{page.name}" for page in PAGES} <= linked


def codes(page: Path) -> set[str]:
    """Return what stands in backticks outside of blocks."""
    return set(re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text("utf-8"))))


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of_page)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """A path begins in the repository, or in the package."""
    named = {code for code in codes(page) if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", code)}
    paths = {code for code in named if "/" in code.strip("/") or code.endswith((".py", ".md"))}
    assert not {path for path in paths - OUTSIDE if not ((ROOT / path).exists() or (PACKAGE / path).exists())}


def test_methods_that_the_life_of_a_call_names_exist() -> None:
    """`Store.get` is the method `get` of a class `Store`, and a name in capitals alone is a class."""
    classes: dict[str, set[str]] = {}
    for node in (node for file in FILES for node in ast.walk(tree_of(file)) if isinstance(node, ast.ClassDef)):
        methods = (each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
        classes.setdefault(node.name, set()).update(methods)
    named = {code for code in codes(DOCS / "how-it-works.md") if re.fullmatch(r"([A-Z][a-z]+){2,}|[A-Z]\w+\.\w+", code)}
    assert {"CachedFunction.get", "Intent.begin", "Pipeline.get", "RunningLoad"} <= named
    missing = [code for code in named if code.partition(".")[0] not in classes]
    missing += [
        code
        for code in named - {*missing}
        for name, _, method in [code.partition(".")]
        if method not in classes[name] | {""}
    ]
    assert not missing


def test_the_rooms_of_the_code_are_those_on_the_page() -> None:
    """Each name directly under `fastrdb` is a row, and each arrow of the diagram is an import."""
    section = (DOCS / "how-it-works.md").read_text("utf-8").split("## The rooms of the code\n")[1].split("\n## ")[0]
    rooms = {name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)", row)}
    assert rooms == {name for file in FILES if not (name := name_of(file)).startswith("__")} | {"docs"}
    imports = {
        (name_of(file), each.module.split(".")[1])
        for file in FILES
        for each in imports_of(file)
        if each.module.startswith("fastrdb.") and not each.typing_only
    }
    arrows = set(re.findall(r"^    (\w+) --> (\w+)$", section, re.MULTILINE))
    assert len(arrows) > 10
    assert not arrows - imports


def test_each_option_is_on_the_page_of_options() -> None:
    """The tables name all that `cached` and `Cache` take."""
    text = (DOCS / "options.md").read_text("utf-8")
    taken = {*Options.__annotations__, *inspect.signature(Cache.__init__).parameters} - {"self", "redis"}
    assert [name for name in sorted(taken) if f"`{name}`" not in text] == []


def test_each_kind_of_event_is_on_the_page_of_operations() -> None:
    """The table of events names all that hooks and counts have."""
    table = (DOCS / "operations.md").read_text("utf-8").split("## Events and counts\n")[1].split("\n## ")[0]
    events = {
        name for cells in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cells)
    }
    kinds = {kind for each in get_args(Kind) for kind in (get_args(each) or [each])}
    assert events == kinds


def test_commands_and_variables_of_the_pages_are_those_of_the_command_line() -> None:
    """The table of commands has each of them, and a page names no variable of the environment that is not read."""
    operations = (DOCS / "operations.md").read_text("utf-8")
    table = operations.split("## The command line\n")[1].split("\n## ")[0]
    written = set(re.findall(r"`fastrdb (\w+)", "\n".join(re.findall(r"^\| (.+?) \|", table, re.MULTILINE))))
    commands = {each.name or getattr(each.callback, "__name__", "") for each in cli.registered_commands}
    assert written == commands | {each.name for each in cli.registered_groups}
    variable, files = re.compile(r"FASTRDB_[A-Z_]+"), [*FILES, *(ROOT / "benchmarks").rglob("*.py")]
    read = {name for file in files for name in variable.findall(file.read_text("utf-8"))}
    named = {name for page in [README, *PAGES] for name in variable.findall(page.read_text("utf-8"))}
    assert named <= read


def test_defaults_of_options_are_those_of_the_signatures() -> None:
    """A default is written as in Python; `none` is an empty one, and a size has its unit."""
    text = (DOCS / "options.md").read_text("utf-8")
    policy = inspect.signature(Policy.of).parameters
    functions, caches = text.split("## Of a cache\n")
    for section, parameters in ((functions, policy), (caches, inspect.signature(Cache.__init__).parameters)):
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", section, re.MULTILINE)
        given = {name for name, each in parameters.items() if each.default is not each.empty}
        given -= {"timeout"}  # longer in tests: see patient_caches
        written = {name: default.strip("`") for name, default in rows if name in given and "the cache" not in default}
        assert len(written) > 7
        for name, default in written.items():
            value = parameters[name].default
            if default == "none":
                assert not value, name
            elif default == "1 MiB":
                assert value == 2**20, name
            else:
                assert value == ast.literal_eval(default), name


def test_ci_runs_the_test_command_of_the_readme() -> None:
    """CI does what the README says, and nothing that it does not."""
    demo, *tests = (block.strip() for block in blocks(README, "sh")[:3])
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands[4:] == tests  # after set, cd, export CI and unset
    assert demo.endswith("python -m fastrdb demo")
