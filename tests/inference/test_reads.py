"""The tags of each kind of query: the table of cases in docs/invalidation.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from gc import collect
from typing import Any
from weakref import ref

import pytest
import sqlalchemy as sa
from sqlalchemy import event, func, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, aliased, joinedload, selectinload, with_loader_criteria
from sqlalchemy.sql.functions import GenericFunction

from fastrdb.inference import Names, reads, reads_of
from fastrdb.inference.names import OncePerForm
from fastrdb.keys import ANYTHING, row_tag, table_tag
from fastrdb.orm import exact_type

from .models import TAGGING, Admin, Base, Label, Org, Person, Post


class Recorder:
    """A session on SQLite, and what was read of the statements that it has sent."""

    def __init__(self, engine: sa.Engine) -> None:
        self.tags, self.coarse, self.functions = set[str](), list[str](), set[str]()
        event.listen(engine, "before_cursor_execute", self._note)
        self.session = Session(engine)

    def _note(self, connection: Any, cursor: Any, text: str, parameters: Any, context: Any, many: bool) -> None:
        if context.compiled is None or context.isinsert or context.isddl:
            return
        found = reads_of(
            context.compiled, Names(frozenset({"main"}), context.execution_options.get("schema_translate_map"))
        )
        tags, coarse = found.of(context.compiled_parameters[0], context._expanded_parameters)
        self.tags |= tags
        self.coarse += coarse
        self.functions |= found.origins.functions


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Return a recorder on a database with a few rows."""
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Org(id=1, name="one", people=[Person(id=1, email="a"), Admin(id=2, email="b", level=3)]))
        session.add(Post(id=1, title="p", author_id=1, labels=[Label(id=5, name="x")]))
        session.commit()
    found = Recorder(engine)
    with found.session:
        yield found
    engine.dispose()


def tags(*names: str) -> set[str]:
    """Return tags: `post` is any row of the table, `post.id=1` the rows with that value."""
    found = set()
    for name in names:
        column, is_row, value = name.partition("=")
        table, _, field = column.partition(".")
        given: Any = int(value) if value.isdigit() else value if value != "NULL" else None
        found.add((row_tag(table, field, given) if is_row else table_tag(table)) or "")
    return found


Query = Callable[[Session], Any]

CASES: dict[str, tuple[Query, set[str]]] = {
    "get by primary key": (lambda db: db.get(Post, 1), tags("post.id=1")),
    "a value that no row has": (
        lambda db: db.scalar(select(Person.id).where(Person.email == "?")),
        tags("person.email=?"),
    ),
    "a list of a parent, a page": (
        lambda db: db.scalars(select(Post.id).where(Post.author_id == 1).order_by(Post.title).limit(2).offset(1)).all(),
        tags("post.author_id=1"),
    ),
    "a count": (
        lambda db: db.scalar(select(func.count()).select_from(Post).where(Post.author_id == 1)),
        tags("post.author_id=1"),
    ),
    "several values": (
        lambda db: db.scalars(select(Org.name).where(Org.id.in_([1, 2]))).all(),
        tags("org.id=1", "org.id=2"),
    ),
    "no value": (lambda db: db.scalars(select(Org.name).where(Org.id.in_([]))).all(), set()),
    "too many values": (lambda db: db.scalars(select(Org.name).where(Org.id.in_(range(33)))).all(), tags("org")),
    "IS NULL": (
        lambda db: db.scalars(select(Post.id).where(Post.author_id.is_(None))).all(),
        tags("post.author_id=NULL"),
    ),
    "= NULL": (
        lambda db: db.scalars(select(Post.id).where(Post.author_id == sa.bindparam("x", None, sa.Integer))).all(),
        set(),
    ),
    "an OR on one column": (
        lambda db: db.scalars(select(Org.name).where((Org.id == 1) | (Org.id == 3))).all(),
        tags("org.id=1", "org.id=3"),
    ),
    "an OR on two columns": (
        lambda db: db.scalars(select(Org.id).where((Org.id == 1) | (Org.name == "x"))).all(),
        tags("org"),
    ),
    "a range": (lambda db: db.scalars(select(Org.name).where(Org.id > 1)).all(), tags("org")),
    "a column that is compared as a fraction": (
        lambda db: db.scalars(select(Person.email).where(Person.score == 1.0)).all(),
        tags("person"),
    ),
    "a value of another type": (lambda db: db.scalars(select(Org.name).where(Org.id == True)).all(), tags("org")),  # noqa: E712
    "a lower-cased column": (
        lambda db: db.scalars(select(Person.id).where(func.lower(Person.email) == "a")).all(),
        tags("person"),
    ),
    "a collation": (
        lambda db: db.scalars(select(Person.id).where(sa.collate(Person.email, "NOCASE") == "a")).all(),
        tags("person"),
    ),
    "joinedload": (
        lambda db: db.scalars(select(Post).options(joinedload(Post.author)).where(Post.id == 1)).unique().all(),
        tags("post.id=1", "person"),
    ),
    "selectinload": (
        lambda db: db.scalars(select(Org).options(selectinload(Org.people)).where(Org.id == 1)).all(),
        tags("org.id=1", "person.org_id=1"),
    ),
    "a lazy load": (lambda db: db.get_one(Org, 1).people, tags("org.id=1", "person.org_id=1")),
    "a join with a constant parent": (
        lambda db: db.execute(select(Post.title, Person.email).join(Post.author).where(Person.id == 1)).all(),
        tags("person.id=1", "post.author_id=1"),
    ),
    "a join over three tables": (
        lambda db: db.execute(select(Post.id).join(Post.author).join(Person.org).where(Person.org_id == 1)).all(),
        tags("person.org_id=1", "org.id=1", "post"),
    ),
    "any()": (
        lambda db: db.scalars(select(Org.id).where(Org.id == 1, Org.people.any(Person.email == "a"))).all(),
        tags("org.id=1", "person.email=a"),
    ),
    "EXISTS with the parent's constant": (
        lambda db: db.scalars(
            select(Org.id).where(Org.id == 1, select(Post.id).where(Post.author_id == Org.id).exists())
        ).all(),
        tags("org.id=1", "post.author_id=1"),
    ),
    "an anti-join": (
        lambda db: db.scalars(select(Org.id).outerjoin(Org.people).where(Org.id == 1, Person.id.is_(None))).all(),
        tags("org.id=1", "person.org_id=1"),
    ),
    "many-to-many": (
        lambda db: db.get_one(Post, 1).labels,
        tags("post.id=1", "tagging.post_id=1", "label"),
    ),
    "joined inheritance": (
        lambda db: db.scalars(select(Admin.level).where(Admin.id == 2)).all(),
        tags("admin.id=2", "person.id=2"),
    ),
    "joined inheritance in a subquery": (
        lambda db: db.scalars(select(Org.id).where(Org.id.in_(select(Admin.org_id).where(Admin.level == 3)))).all(),
        tags("org", "admin.level=3", "person"),
    ),
    "a base class": (lambda db: db.scalars(select(Person).where(Person.id == 1)).all(), tags("person.id=1")),
    "an alias": (
        lambda db: db.scalars(select(aliased(Person, name="p").email).where(sa.text("1 = 1"))).all(),
        tags("person"),
    ),
    "a UNION": (
        lambda db: db.execute(sa.union(select(Org.id).where(Org.id == 1), select(Post.id).where(Post.id == 2))).all(),
        tags("org.id=1", "post.id=2"),
    ),
    "a CTE": (
        lambda db: db.execute(select(select(Org.id).where(Org.id == 1).cte("c").c.id)).all(),
        tags("org.id=1"),
    ),
    "a scalar subquery": (
        lambda db: db.execute(
            select(Org.id, select(func.count(Post.id)).where(Post.author_id == 7).scalar_subquery()).where(Org.id == 1)
        ).all(),
        tags("org.id=1", "post.author_id=7"),
    ),
    "a subquery in ORDER BY and LIMIT": (
        lambda db: db.scalars(
            select(Org.name).where(Org.id == 1).order_by(select(func.max(Post.id)).scalar_subquery())
        ).all(),
        tags("org.id=1", "post"),
    ),
    "an association table": (
        lambda db: db.execute(select(TAGGING).where(TAGGING.c.label_id == 5)).all(),
        tags("tagging.label_id=5"),
    ),
    "text": (lambda db: db.execute(sa.text("SELECT * FROM org WHERE id = :id"), {"id": 1}).all(), tags("org")),
    "text with columns": (
        lambda db: db.scalars(select(Org).from_statement(sa.text("SELECT * FROM org").columns(Org.id, Org.name))).all(),
        tags("org"),
    ),
    "text with columns, and a CTE that it reads": (
        lambda db: db.execute(
            sa.text("SELECT name FROM c").columns(Org.name).add_cte(select(Org.name).where(Org.id == 1).cte("c"))
        ).all(),
        {ANYTHING},
    ),
    "a part that is text": (
        lambda db: db.execute(select(Org.id, sa.literal_column("(SELECT max(id) FROM post)"))).all(),
        {ANYTHING},
    ),
    "loader criteria": (
        lambda db: db.scalars(select(Post.id).options(with_loader_criteria(Post, Post.author_id == 1))).all(),
        tags("post.author_id=1"),
    ),
    "loader criteria with a subquery, inside of a subquery": (
        lambda db: db.scalars(
            select(Org.id)
            .where(Org.id.in_(select(Post.id).where(Post.id == 1)))
            .options(with_loader_criteria(Post, Post.author_id.in_(select(Label.id).where(Label.id == 5))))
        ).all(),
        tags("org", "post.id=1", "label.id=5"),
    ),
}


NOTES = sa.Table(
    "notes",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("post_id", sa.ForeignKey(Post.id)),
    sa.Column("above_id", sa.ForeignKey(Post.id)),
    sa.Column("deleted_at", sa.DateTime),
    sa.Column("kind", sa.Integer),
    sa.Column("mark", sa.Integer),
    sa.Column("slug", sa.String),
    sa.UniqueConstraint("slug"),
    sa.Index("by_mark", "mark"),
    sa.Index("by_kind", sa.text("kind + 1")),
)


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ((NOTES.c.post_id == 1, NOTES.c.above_id.is_(None)), "notes.post_id=1"),
        ((NOTES.c.slug == "x", NOTES.c.deleted_at.is_(None)), "notes.slug=x"),
        ((NOTES.c.kind == 1, NOTES.c.above_id.is_(None)), "notes.kind=1"),
        ((NOTES.c.slug == "x", NOTES.c.post_id == 1), "notes.slug=x"),
        ((NOTES.c.mark == 5, NOTES.c.kind == 1), "notes.mark=5"),
        ((NOTES.c.deleted_at.is_(None),), "notes"),
    ],
)
def test_a_query_depends_on_its_most_selective_column(
    recorder: Recorder, where: tuple[sa.ColumnElement[bool], ...], chosen: str
) -> None:
    """That is one with a key or an index, of the table's as of the column's own; and any value before none."""
    NOTES.create(recorder.session.connection())
    recorder.session.execute(select(NOTES.c.id).where(*where))
    assert recorder.tags == tags(chosen)


@pytest.mark.parametrize("case", CASES)
def test_a_query_has_these_tags(recorder: Recorder, case: str) -> None:
    """A query depends on the rows that can matter to its answer."""
    if case in ("text", "text with columns"):
        pytest.importorskip("sqlglot")
    query, expected = CASES[case]
    query(recorder.session)
    assert recorder.tags == expected


def test_each_execution_has_the_tags_of_its_values(recorder: Recorder) -> None:
    """SQLAlchemy keeps the compiled statement with the first values; the second execution has values of its own."""
    for key in (1, 2):
        recorder.session.scalars(select(Org.name).where(Org.id == key)).all()
        recorder.session.scalars(select(Post.title).where(Post.id.in_([key, key + 5]))).all()
    assert recorder.tags == tags("org.id=1", "org.id=2", "post.id=1", "post.id=6", "post.id=2", "post.id=7")


def test_a_statement_is_read_once(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hundred executions with one hundred values read the compiled statement once."""
    read = list[Any]()
    result = reads._Reader.result

    def counted(self: Any) -> Any:
        read.append(self)
        return result(self)

    monkeypatch.setattr(reads._Reader, "result", counted)
    for key in range(100):
        recorder.session.scalars(select(Label.name).where(Label.id == key)).all()
    assert len(read) == 1
    assert len(recorder.tags) == 100


def test_a_wide_tag_has_a_reason(recorder: Recorder) -> None:
    """The reason says what would be exact."""
    recorder.session.scalars(select(Post).options(joinedload(Post.author)).where(Post.id == 1)).unique().all()
    assert recorder.coarse == [
        "person: any row, because the join has no constant (joinedload): selectinload is exact",
    ]


def test_a_function_of_the_moment_has_a_reason(recorder: Recorder) -> None:
    """An answer that depends on the time is as old as its ttl allows."""
    recorder.session.scalars(select(func.now()).select_from(Org).where(Org.id == 1)).all()
    assert recorder.tags == tags("org.id=1")
    assert recorder.coarse == ["now() changes without a write: only the ttl bounds its age"]


def test_functions_are_named(recorder: Recorder) -> None:
    """All are left to the catalog: a database may have an own function of any name."""
    recorder.session.scalars(select(func.coalesce(func.hex(Org.name), "")).where(Org.id == 1)).all()
    assert recorder.functions == {"coalesce", "hex"}


def test_sql_made_by_a_function_of_the_user_may_read_anything(recorder: Recorder) -> None:
    """A construct with `@compiles` may be any SQL."""

    class Newest(GenericFunction[int]):
        name = "newest"
        inherit_cache = True

    @compiles(Newest)
    def _(element: Any, compiler: Any, **kw: Any) -> str:
        return "(SELECT max(id) FROM post)"

    recorder.session.scalars(select(Newest())).all()
    assert recorder.tags == {ANYTHING}


def test_a_translated_schema_is_a_part_of_the_name(recorder: Recorder) -> None:
    """Two maps give one compiled statement two names; the connection's own schema has none."""
    connection = recorder.session.connection()
    connection.exec_driver_sql("ATTACH ':memory:' AS other")
    connection.exec_driver_sql("CREATE TABLE other.label (id INTEGER, name TEXT)")
    recorder.tags.clear()
    for schema in ("other", "main"):
        options = {"schema_translate_map": {None: schema}}
        connection.execute(select(Label.name).where(Label.id == 5), execution_options=options).all()
    assert recorder.tags == {row_tag("other.label", "id", 5), row_tag("label", "id", 5)}


def test_what_is_known_of_a_statement_goes_with_the_statement() -> None:
    """And is read once for each schema_translate_map."""
    read = list[Any]()

    class Known:
        pass

    def once(compiled: Any, names: Names) -> Known:
        read.append(names.translated)
        return Known()

    known_of = OncePerForm(once)
    for number in range(3):
        compiled = sa.select(sa.literal(number)).compile(dialect=sqlite.dialect())
        known = known_of(compiled, Names())
        assert known_of(compiled, Names()) is known
        other = Names(translated={"a": "b"})
        assert known_of(compiled, other) is known_of(compiled, other) is not known
        gone = ref(known)
        del compiled, known
        collect()
        assert gone() is None
    assert read == [None, {"a": "b"}] * 3


@pytest.mark.parametrize(("dialect", "exact"), [("postgresql", None), ("sqlite", str)])
def test_a_variant_of_a_dialect_is_the_type_there(dialect: str, exact: type | None) -> None:
    """`with_variant(CITEXT(), "postgresql")` takes texts in other cases for equal on PostgreSQL only."""
    kind = sa.String().with_variant(CITEXT(), "postgresql")
    assert exact_type(kind, dialect) is exact


class Distance(sa.Integer):
    """An integer that is stored without its sign."""

    cache_ok = True

    def bind_processor(self, dialect: Any) -> Any:
        """Make a value what is stored."""
        return abs


@pytest.mark.parametrize("kind", [sa.NCHAR(5), sa.CHAR(5), Distance()])
def test_a_type_with_several_values_for_one_is_not_exact(kind: Any) -> None:
    """Padded texts, and the values of a class that converts these."""
    assert exact_type(kind, "postgresql") is None
