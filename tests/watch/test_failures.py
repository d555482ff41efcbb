"""Each row of the table of failures in `outside.md` has tests, and each test that is named here exists."""

from __future__ import annotations

import ast

import pytest

from tests.support import ROOT

HEADING = "## What happens when something fails"
PAGE = ROOT / "fastrdb" / "docs" / "outside.md"

# The first words of each row, and its tests: file:function. A changed row needs its tests looked at again.
TESTS = {
    "no watcher runs for long": [
        "test_watcher:test_the_first_watcher_invalidates_everything_and_the_next_goes_on",
        "test_watcher:test_entries_are_bypassed_while_no_watcher_is_alive",
    ],
    "Redis cannot be reached": [
        "test_watcher:test_a_watcher_without_redis_for_long_loses_nothing",
        "test_watcher:test_without_redis_the_position_stays",
        "test_mechanisms:redis_away",
    ],
    "several watchers run": [
        "test_watcher:test_of_two_watchers_one_leads_and_the_other_goes_on",
        "test_watcher:test_an_outbox_is_read_for_one_namespace",
        "test_telemetry:test_a_watcher_that_waits_says_for_which_other_one",
        "test_mechanisms:two_namespaces",
    ],
    "a watcher is killed between Redis and its own bookkeeping": [
        "test_watcher:test_a_watcher_killed_before_its_position_is_stored_repeats_the_change",
    ],
    "a transaction commits late, or was prepared long ago": [
        "test_watcher:test_a_slow_transaction_is_not_skipped",
        "test_mechanisms:committed_late",
        "test_postgresql:test_each_commit_is_reported_exactly_once",
        "test_postgresql:test_a_transaction_that_was_prepared_long_ago_is_reported_when_it_is_committed",
        "test_mysql:test_the_commit_of_a_prepared_transaction_invalidates_everything",
    ],
    "a transaction makes more changes than a poll reads at a time": [
        "test_postgresql:test_a_commit_between_two_pages_is_reported_by_the_next_poll_alone",
        "test_sources:test_more_changes_than_a_page_are_all_reported",
    ],
    "the outbox is emptied: a crash, a failover, TRUNCATE": [
        "test_postgresql:test_a_crash_of_the_server_loses_nothing_unnoticed",
        "test_postgresql:test_an_emptied_outbox_is_noticed_until_it_is_marked",
        "test_mysql:test_an_emptied_outbox_is_noticed_until_it_is_marked",
        "test_watcher:test_a_watcher_of_sqlite_notices_that_another_one_has_deleted_what_it_has_not_read",
        "test_mechanisms:emptied",
    ],
    "the database is restored from a backup": [
        "test_postgresql:test_a_position_of_a_newer_database_is_lost",
        "test_postgresql:test_a_copy_of_the_database_on_the_same_server_is_another_one",
        "test_postgresql:test_copied_files_of_a_server_are_older",
        "test_mysql:test_a_database_that_is_older_than_the_position_is_lost",
        "test_mysql_outbox:test_an_outbox_from_a_dump_is_another_one",
        "test_mysql_outbox:test_an_older_outbox_is_noticed_while_a_watcher_runs",
        "test_sqlite:test_an_older_file_is_lost",
        "test_sqlite:test_a_backup_that_was_written_to_since_is_another_history",
        "test_sqlite:test_another_file_is_noticed_that_came_while_no_watcher_ran",
    ],
    "a snapshot or a transaction stays open for long": [
        "test_postgresql:test_a_long_snapshot_keeps_no_change_back",
        "test_postgresql:test_a_long_transaction_keeps_no_change_back",
    ],
    "a table is made after `install`, or a write fires no trigger": [
        "test_sources:test_status_names_what_is_not_watched",
        "test_postgresql:test_a_partition_and_its_parent_stand_for_each_other",
        "test_postgresql:test_a_partition_that_is_attached_later_stands_for_its_parent_at_once",
        "test_postgresql:test_a_disabled_trigger_is_named_and_made_again",
        "test_postgresql:test_a_role_that_fires_no_trigger_is_named",
    ],
    "the binary log is purged, or is another server's": [
        "test_mysql:test_a_purged_position_is_lost",
        "test_mysql:test_a_log_of_another_server_is_lost",
        "test_mysql:test_a_log_that_has_begun_anew_is_lost",
    ],
    "a setting of the binary log or a right is missing": [
        "test_mysql:test_a_setting_that_permits_no_watching_is_named",
        "test_mysql:test_a_right_that_is_missing_is_named",
        "test_mysql:test_a_row_that_is_not_decoded_is_any_row",
    ],
    "foreign keys change rows without an event": [
        "test_mysql:test_foreign_keys_are_followed_over_tables",
        "test_sources:test_a_cascade_is_reported",
    ],
    "the watcher is too slow, or stops": [
        "test_postgresql:test_nothing_is_installed_that_makes_commits_wait_or_keeps_wal",
        "test_mysql:test_writers_do_not_wait_for_a_poll",
    ],
}


def rows() -> list[str]:
    """Return the first cell of each row of the table."""
    section = PAGE.read_text("utf-8").partition(f"\n{HEADING}\n")[2].partition("\n## ")[0]
    cells = [line.strip("|").split(" | ")[0].strip() for line in section.splitlines() if line.startswith("|")]
    return cells[2:]  # without the head and the line under it


def test_rows_have_tests_each() -> None:
    """A row that is added or changed has to be put beside its tests here."""
    assert rows() == list(TESTS)


@pytest.mark.parametrize("row", TESTS)
def test_tests_of_a_row_are_there(row: str) -> None:
    """No test that is named here was renamed or taken away."""
    for name in TESTS[row]:
        file, _, function = name.partition(":")
        tree = ast.parse((ROOT / "tests" / "watch" / f"{file}.py").read_text("utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
