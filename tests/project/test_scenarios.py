"""What goes wrong in caches that follow writes, and where this repository shows that it does not here.

Most of these are bugs that other libraries had. Each has a test, or a line of the documents that says why not.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RACES = "tests/races/scenarios/tags.py"
TAGS = "tests/races/test_tags.py"
READS = "tests/inference/test_reads.py"
SOUND = "tests/inference/test_soundness.py"
CATALOG = "tests/inference/test_catalog.py"
TEXT = "tests/inference/test_text.py"
WRITES = "tests/transactions/test_followed_writes.py"
STATEMENTS = "tests/transactions/test_followed_statements.py"
HIDDEN = "tests/invalidation/test_hidden_writes.py"
AUTO = "tests/invalidation/test_auto.py"
OPTIONS = "tests/invalidation/test_followed_options.py"
DECLARED = "tests/loading/test_depends_on.py"
PAGE = "fastrdb/docs/invalidation.md"

SCENARIOS: dict[str, tuple[str, ...]] = {
    # Races
    "1. a write during a load, whose tags are not known yet": (f"{RACES}::written_during_the_load",),
    "2. a barrier that lapses during a load": (f"{RACES}::writer_died",),
    "3. a caller that asked after a commit gets what a load read before": (
        f"{DECLARED}::test_late_caller_does_not_get_what_was_read_before_its_call",
        f"{DECLARED}::test_late_caller_on_a_cluster",
    ),
    "4. a value that is put, and a writer that knows only its tag": (f"{RACES}::put_and_found_by_its_tag",),
    "5. invalidated before the commit, and cached again in between": (f"{RACES}::writer_stands",),
    "6. the end of one of two writers": (f"{RACES}::two_writers",),
    "7. the machine's clock is set back": (f"{RACES}::clock_set_back",),
    "8. two tables, of which one is written between two statements": (f"{RACES}::one_of_two_tables",),
    "9. a crowd on a table that is written all the time": (
        f"{DECLARED}::test_crowd_that_asked_before_needs_two_loads",
    ),
    "10. a long load on a table with very many writes": (f"{RACES}::stamps_are_bounded",),
    # What was read
    "11. a subquery inside of an expression": (
        f"{READS}::a scalar subquery",
        f"{READS}::a subquery in ORDER BY and LIMIT",
        f"{SOUND}::nested_selects",
    ),
    "12. an anti-join": (f"{READS}::an anti-join", f"{SOUND}::null_side"),
    "13. an ON that constrains the left side of a LEFT JOIN": (f"{SOUND}::outer_on",),
    "14. names and words that are found inside of others in a text": (
        f"{TEXT}::test_sqlglot_takes_a_text_apart",
        f"{TEXT}::test_what_is_not_plain_is_not_sure",
    ),
    "15. a view": (f"{CATALOG}::test_a_view_depends_on_its_tables",),
    "16. a function that reads a table": (f"{CATALOG}::test_a_function_that_reads_tables_is_followed",),
    "17. multi-table inheritance": (
        f"{READS}::joined inheritance",
        f"{AUTO}::test_both_tables_of_an_inheriting_class_are_followed",
    ),
    "18. joined rows of another table": (f"{READS}::joinedload",),
    "19. a compiled statement with the values of its first execution": (
        f"{READS}::test_each_execution_has_the_tags_of_its_values",
    ),
    "20. values that are equal for the database, and not here": (
        f"{READS}::a collation",
        f"{READS}::a column that is compared as a fraction",
        f"{READS}::a value of another type",
    ),
    "21. an empty answer, and a row that comes later": (f"{AUTO}::test_an_insert_drops_answers_that_lacked_the_row",),
    "22. a page that shifts when a row before it goes": (
        f"{READS}::a list of a parent, a page",
        f"{SOUND}::test_no_change_of_an_answer_is_missed",
    ),
    "23. an IN with thousands of values": (f"{READS}::too many values",),
    "24. a nested call that is a hit": (f"{OPTIONS}::nested",),
    "25. a tenant by search_path, and a default schema that is named": (
        f"{AUTO}::test_a_search_path_makes_names_doubtful",
        f"{HIDDEN}::another search_path",
        f"{PAGE}::the tables of `public` are not concerned",
    ),
    # What was written
    "26. bulk statements, of which the ORM has no event": (f"{WRITES}::bulk update", f"{WRITES}::legacy bulk update"),
    "27. rows that leave the filter by the update": (f"{WRITES}::bulk update that moves",),
    "28. an object that was loaded long ago": (f"{WRITES}::test_what_a_session_remembers_is_not_trusted",),
    "29. a row that comes between the look and the statement": (
        f"{STATEMENTS}::test_another_count_of_rows_makes_the_look_worthless",
    ),
    "30. many-to-many": (f"{WRITES}::test_many_to_many_is_known_by_both_keys",),
    "31. foreign keys that cascade in the database": (
        f"{WRITES}::test_cascades_of_the_database_are_followed",
        f"{STATEMENTS}::test_on_update_cascade_reaches_the_child_by_both_keys",
    ),
    "32. triggers, and generated columns": (
        f"{HIDDEN}::a trigger deletes, and a key cascades",
        f"{CATALOG}::test_a_trigger_writes_other_tables",
        f"{STATEMENTS}::test_a_computed_column_is_unknown",
    ),
    "33. upserts, and INSERT OR REPLACE": (
        f"{STATEMENTS}::test_an_upsert_reaches_the_values_of_its_conflict",
        f"{HIDDEN}::INSERT OR REPLACE deletes, and a key cascades",
        f"{SOUND}::upserts",
    ),
    "34. a CTE that writes, and a function that writes": (
        f"{STATEMENTS}::test_a_write_inside_of_a_select_is_followed",
        f"{STATEMENTS}::test_a_function_that_writes_is_followed",
    ),
    "35. DML as text, and COPY of the driver": (
        f"{AUTO}::test_text_without_a_reader_drops_its_table",
        f"{PAGE}::a driver's own connection (its `COPY`, say)",
    ),
    "36. a statement that empties everything, unnoticed": (
        f"{AUTO}::test_a_statement_that_cannot_be_read_is_said_once",
    ),
    "37. a flush that fails": (f"{WRITES}::test_a_rolled_back_write_reaches_nothing",),
    "38. uncommitted rows, and savepoints that are rolled back": (
        "tests/guarantees/test_own_writes.py::test_own_writes_are_seen_by_their_session_only",
        f"{STATEMENTS}::test_a_savepoint_that_is_rolled_back_reaches_more",
    ),
    "39. connections that are made anew": (f"{STATEMENTS}::test_connections_that_are_made_anew_are_followed",),
    "40. two databases and two caches in one process": (
        f"{STATEMENTS}::test_a_commit_reaches_each_cache_that_follows",
    ),
    "41. a process that only writes": (f"{AUTO}::test_a_process_that_only_writes_drops",),
    "42. a new tag column during a deploy": (
        f"{RACES}::column_that_the_writer_does_not_name",
        f"{RACES}::first_entry_of_a_column",
    ),
    "43. locks that the look takes": (
        f"{STATEMENTS}::test_a_look_waits_where_its_statement_would",
        f"{CATALOG}::test_a_user_without_the_right_to_lock_does_not_look",
    ),
    "44. very many rows in one transaction": (
        f"{WRITES}::test_the_number_of_changes_is_bounded",
        f"{WRITES}::more than 64 rows",
    ),
    # Redis
    "45. sets that grow": (
        f"{TAGS}::test_entries_that_expire_unread_leave_no_tags",
        "tests/protocol/test_growth.py::test_many_ids_with_tags_that_expire_unread",
    ),
    "46. a tag with very many entries": (f"{TAGS}::test_a_hot_tag_is_swept_in_portions",),
    "47. eviction of one key, or of two": (f"{TAGS}::test_lost_keys_leave_nothing_stale",),
    "48. a failover to a replica that lacks the last stamps": (f"{RACES}::failed_over",),
    "49. Redis is out of reach at the begin or at the end": (
        f"{TAGS}::test_commit_that_redis_misses_is_repaired_by_its_tags",
    ),
}


def test_the_scenarios_are_numbered() -> None:
    """No number is missing."""
    assert [int(name.partition(".")[0]) for name in SCENARIOS] == list(range(1, 50))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_has_its_test_or_its_line(name: str) -> None:
    """A function or a case of that name is in the file, or these words are on the page."""
    for place in SCENARIOS[name]:
        file, _, what = place.partition("::")
        text = (ROOT / file).read_text("utf-8")
        is_page = file.endswith(".md")
        assert what in text if is_page else f"def {what}(" in text or f'"{what}"' in text, place
