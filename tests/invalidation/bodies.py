"""Bodies of triggers that are hard to read: each writes to a table, and names that table where it is easily missed."""

from __future__ import annotations

from typing import Final

WRITES: Final = "UPDATE posts SET org_id = 9 WHERE id = 1;"
"""What each body does."""
LOG: Final = "UPDATE {} SET id = 9;"
"""What a body does to the table `audit-log`, which is quoted in each database's own way."""

POSTGRESQL: Final = {
    "an escaped quote": f"IF NEW.name <> E'\\'' THEN {WRITES} END IF; PERFORM 'x';",
    "a dollar quote": f"PERFORM $q$it's$q$; {WRITES} PERFORM 'x';",
    "a dollar quote without a name": f"PERFORM $$it's$$; {WRITES} PERFORM 'x';",
    "a quote in a name": f"PERFORM 1 AS \"it's\"; {WRITES} PERFORM 'x';",
    "two quotes in a name": f'PERFORM 1 AS "a""it\'s"; {WRITES} PERFORM \'x\';',
    "a comment in a comment": f"/* a /* b */ it's */ {WRITES} PERFORM 'x';",
    "a quote in a comment": f"-- it's\n{WRITES} PERFORM 'x';",
    "a comment in a name": f'PERFORM 1 AS "a--b"; {WRITES}',
    "a begin of a comment in a name": f'PERFORM 1 AS "a/*b"; {WRITES} PERFORM 1 AS "*/";',
    "an escaped name": 'UPDATE U&"p\\006fsts" SET org_id = 9 WHERE id = 1;',
    "a block of its own": f"DO $do$ BEGIN {WRITES} END $do$;",
    "a block with a language": f"DO LANGUAGE plpgsql 'BEGIN {WRITES} END';",
    "a name that is cut": "UPDATE {long}_and_more SET id = 9;",
    "a name that is no word": LOG.format('"audit-log"'),
    "a name with a dot": 'UPDATE "audit.log" SET id = 9;',
    "a function with the name of a table": "PERFORM comments(1);",
    "a function with the name of a table and a schema": "PERFORM public . comments (1);",
}
MARIADB: Final = {
    "an escaped quote": f"SET @x = '\\''; {WRITES} SET @x = 'x';",
    "a quote in a text": f"SET @x = \"it's\"; {WRITES} SET @x = 'x';",
    "a quote in a name": f"SELECT 1 AS `it's` INTO @x; {WRITES} SET @x = 'x';",
    "a quote in a comment": f"# don't\n {WRITES} SET @x = 'x';",
    "no comment": f"SET @x = 5--1; {WRITES}",
    "a comment that runs": f"/*! {WRITES} */ /*M! SET @x = 1; */",
    "a name that begins with digits": "UPDATE 1st SET id = 9;",
    "a name that is no word": LOG.format("`audit-log`"),
    "a function with the name of a table": "SET @x = comments(1);",
    "a procedure without parentheses": "CALL fix;",
}
SQLITE: Final = {
    "a quote in a name": f"SELECT 1 AS [it's]; {WRITES} SELECT 'x';",
    "a quote in another name": f"SELECT 1 AS \"it's\"; {WRITES} SELECT 'x';",
    "a comment in a name": f"SELECT 1 AS [a--b]; {WRITES}",
    "a name that is no word": LOG.format("[audit-log]"),
}
SET: Final = "set"
"""What the bodies of triggers BEFORE UPDATE set the name of an organization to."""
SETS: Final = {
    "a list behind INTO": "SELECT NEW.id, 'set' INTO NEW.id, NEW.name;",
    "a list behind INTO in front": "SELECT INTO STRICT NEW.id, NEW.name NEW.id, 'set';",
    "FETCH": "OPEN c; FETCH NEXT FROM c INTO n, NEW.name; CLOSE c;",
    "FETCH into the row": "OPEN c; FETCH c INTO NEW; CLOSE c;",
    "FOR": "FOR NEW.name IN SELECT 'set' LOOP PERFORM 1; END LOOP;",
    "FOR with a list": "FOR n, NEW.name IN SELECT 1, 'set' LOOP PERFORM 1; END LOOP;",
    "FOREACH": "FOREACH NEW.name IN ARRAY ARRAY['set'] LOOP PERFORM 1; END LOOP;",
    "RETURNING": "INSERT INTO posts VALUES (9, 9) RETURNING id, 'set' INTO n, NEW.name;",
    "an alias": "again.name := 'set';",
    "spaces": "NEW . name = 'set';",
    "a comment between": "NEW./* it's */name := 'set';",
    "quotes": '"new"."name" := \'set\';',
    "the name of the block": "noted.NEW.name = 'set';",
    "an escaped quote before": "PERFORM E'\\''; NEW.name := 'set'; PERFORM 'x';",
    "a row that is made": "RETURN ROW(NEW.id, 'set'::varchar(20));",
    "another record": "r := NEW; r.name := 'set'::varchar(20); RETURN r;",
    "a query that returns it": "RETURN (SELECT o FROM (SELECT NEW.id, 'set'::varchar(20)) AS o);",
    "the row itself": "NEW := ROW(NEW.id, 'set'::varchar(20));",
    "CALL": "CALL put(NEW.name);",
    "a label": "<<here>> FOR NEW.name IN SELECT 'set' LOOP PERFORM 1; END LOOP here;",
    "a branch": "IF NEW.id = 1 THEN NEW.name = 'set'; END IF;",
}
SETS_MARIADB: Final = {
    "CALL": "CALL put(NEW.name);",
    "spaces": "SET NEW . name = 'set';",
    "quotes": "SET `new`.`name` = 'set';",
    "another case of letters": "SET @x = 1, NEW.NAME = 'set';",
    "a quote in a text": "SET @x = \"it's\"; SET NEW.name = 'set'; SET @x = 'x';",
}
LONG: Final = "a" * 63
_LOGS: Final = ("CREATE TABLE {} (id INTEGER)", "INSERT INTO {} VALUES (1)")


def _logs(*names: str) -> tuple[str, ...]:
    return tuple(each.format(name) for name in names for each in _LOGS)


def prepared(database: str, body: str) -> tuple[str, ...]:
    """Return the statements that make the trigger, and what its body may use."""
    if database == "postgresql":
        return (
            *_logs('"audit-log"', '"audit.log"', LONG),
            f"CREATE FUNCTION comments(n int) RETURNS void LANGUAGE plpgsql AS $$ BEGIN {WRITES} END $$",
            _function(body.replace("{long}", LONG)),
            "CREATE TRIGGER noted AFTER UPDATE ON orgs FOR EACH ROW EXECUTE FUNCTION noted()",
        )
    if database == "mariadb":
        return (
            *_logs("`audit-log`", "1st"),
            f"CREATE FUNCTION comments(n int) RETURNS int MODIFIES SQL DATA BEGIN {WRITES} RETURN n; END",
            f"CREATE PROCEDURE fix() BEGIN {WRITES} END",
            f"CREATE TRIGGER noted AFTER UPDATE ON orgs FOR EACH ROW BEGIN {body} END",
        )
    head = "CREATE TRIGGER noted /* don't BEGIN */ AFTER UPDATE ON orgs WHEN NEW.name <> 'BEGIN it''s'"
    return (*_logs("[audit-log]"), f"{head} begin {body} SELECT 'x'; END")


def _function(body: str) -> str:
    """Return what makes the function of a trigger of PostgreSQL."""
    alias = "again ALIAS FOR NEW;" if "again" in body else ""
    declared = f"n int; r record; c CURSOR FOR SELECT 1, 'set'::varchar(20); {alias}"
    head = "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $body$ DECLARE"
    return f"{head} {declared} BEGIN {body} RETURN NEW; END $body$"


def setting(database: str, body: str) -> tuple[str, ...]:
    """Return the statements that make a trigger which sets the name of an organization."""
    if database == "mariadb":
        return (
            "CREATE PROCEDURE put(INOUT x varchar(20)) SET x = 'set'",
            f"CREATE TRIGGER noted BEFORE UPDATE ON orgs FOR EACH ROW BEGIN {body} END",
        )
    return (
        "CREATE PROCEDURE put(INOUT x varchar) LANGUAGE plpgsql AS $$ BEGIN x := 'set'; END $$",
        _function(body),
        "CREATE TRIGGER noted BEFORE UPDATE ON orgs FOR EACH ROW EXECUTE FUNCTION noted()",
    )


def log_of(body: str) -> str | None:
    """Return the log that a body writes; None for one that writes `posts`."""
    return next(
        (name for name in ("audit-log", "audit.log", "1st") if name in body), LONG if "{long}" in body else None
    )


BODIES: Final = {"postgresql": POSTGRESQL, "mariadb": MARIADB, "sqlite": SQLITE}
