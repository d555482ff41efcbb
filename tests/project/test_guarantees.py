"""Each row of the table of failures in the documents has a file of tests in `tests/guarantees`, and each file a row."""

from __future__ import annotations

from tests.support import ROOT

HEADING = "## What happens when something fails"
PAGE = ROOT / "fastrdb" / "docs" / "guarantees.md"
FOLDER = ROOT / "tests" / "guarantees"
ON_A_CLUSTER = "_cluster"
"""What a file's name ends with that has the tests of its row for a Redis Cluster."""

# The first words of each row, and the name of its file: test_NAME.py. A changed row needs its tests looked at again.
FILES = {
    "a reader's old value arrives after a commit": "old_value",
    "the writer's process dies before, in or after COMMIT": "killed_writer",
    "commit fails, or is rolled back, or the session is closed": "rollback",
    "the outcome of COMMIT is unknown (cancelled, disconnected)": "commit_unknown",
    "a load takes longer than `lease` (10 s)": "slow_load",
    "the session has written in its open transaction": "own_writes",
    "a load reads from a snapshot that is older than the lease (REPEATABLE READ, SERIALIZABLE), "
    "in whatever session": "old_snapshot",
    "a load writes, reads what it wrote, and does not commit it": "uncommitted_load",
    "two tasks use one session (or connection) at once: two misses, or a miss and a write": "session_in_use",
    "the session's identity map holds an old row": "identity_map",
    "the caller that loads is cancelled": "cancelled_load",
    "the load raises": "failed_load",
    "a load calls a cached function that has the same key": "nested_load",
    "an entry is corrupted, truncated, or of an older schema": "corrupted_entry",
    "a command is sent twice, since its answer was lost, and one of the two arrives late": "lost_reply",
    "Redis is slow, down, or refuses": "unwell",
    "a write reaches many keys, or a call asks for many ids": "many_keys",
    "thousands miss at once": "crowd",
    "Redis comes back with other data (an old snapshot, a replica that lagged)": "restart",
    "Sentinel makes a replica the master, and the former master goes on for seconds": "failover",
    "the server of a client is a replica": "replica",
    "the barriers were lost, or lapsed, before COMMIT was done": "lapsed_barriers",
    "the index was evicted, or deleted by hand": "lost_index",
    "the barriers were evicted, or deleted by hand": "lost_barriers",
    "Redis has no room, and refuses to store": "eviction",
    "Redis cannot be reached at a commit": "missed_commit",
}


def rows() -> list[str]:
    """Return the first cell of each row of the table."""
    section = PAGE.read_text("utf-8").partition(f"\n{HEADING}\n")[2].partition("\n## ")[0]
    cells = [line.strip("|").split(" | ")[0].strip() for line in section.splitlines() if line.startswith("|")]
    return cells[2:]  # without the head and the line under it


def test_rows_have_a_file_each() -> None:
    """A row that is added or changed has to be put beside its tests here."""
    assert rows() == list(FILES)
    assert len(set(FILES.values())) == len(FILES)


def test_files_have_tests_and_a_row() -> None:
    """No file is missing, none is empty, and none is about something else than a row."""
    found = {file.stem.removeprefix("test_").removesuffix(ON_A_CLUSTER) for file in FOLDER.glob("test_*.py")}
    assert found == set(FILES.values())
    for name in FILES.values():
        assert "def test_" in (FOLDER / f"test_{name}.py").read_text("utf-8"), name
