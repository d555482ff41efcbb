"""django-cacheops or django-cachalot in a process of its own: the application of `followed`, as Django has it.

    PYTHON benchmarks/questions/rivals_side.py SETTINGS

Run by the Python that has Django, from which nothing else of this repository can be imported. SETTINGS are JSON:
`rival`, `port` of Redis, `database` as Django wants it, `users`, `per_org`, `pages`, `moves`, `writes`, `races`. Prints
JSON: `entries` that there are, `dropped` by all writes, `seconds` from COMMIT to the end of each invalidation, and how
many `stale` answers the races have left.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from itertools import count
from time import perf_counter
from types import ModuleType
from typing import Any

LIFE_S = 3600
_LIMIT_S = 30.0
SETTINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "cacheops": lambda port: {
        "INSTALLED_APPS": ["cacheops"],
        "CACHEOPS_REDIS": {"host": "127.0.0.1", "port": port},
        "CACHEOPS": {"*.*": {"ops": "all", "timeout": LIFE_S}},
    },
    "cachalot": lambda port: {
        "INSTALLED_APPS": ["cachalot"],
        "CACHES": {
            "default": {
                "BACKEND": "django.core.cache.backends.redis.RedisCache",
                "LOCATION": f"redis://127.0.0.1:{port}",
                "TIMEOUT": LIFE_S,
            }
        },
        "CACHALOT_TIMEOUT": LIFE_S,
    },
}


class Application:
    """The models, the queries, and the writes."""

    def __init__(self, given: dict[str, Any]) -> None:
        options = SETTINGS[given["rival"]](given["port"])
        options["INSTALLED_APPS"].append(_app())
        import_module("django.conf").settings.configure(
            DATABASES={"default": given["database"]}, USE_TZ=True, **options
        )
        import_module("django").setup()
        self._atomic = import_module("django.db.transaction").atomic
        self.given, self.users = given, given["users"]
        self.connection = import_module("django.db").connection
        models = import_module("django.db.models")
        self.org = _model(models, "Org", id=models.IntegerField(primary_key=True), name=models.CharField(max_length=40))
        self.member = _model(
            models,
            "Member",
            id=models.IntegerField(primary_key=True),
            org=models.ForeignKey(self.org, models.CASCADE),
            number=models.IntegerField(unique=True),
            name=models.CharField(max_length=40),
        )
        self.sent, self._names = 0, count()
        with self.connection.schema_editor() as editor:
            editor.create_model(self.org)
            editor.create_model(self.member)
        orgs = self.users // given["per_org"]
        self.org.objects.bulk_create([self.org(id=n, name=f"org {n}") for n in range(orgs)])
        rows = [self.member(id=n, org_id=n % orgs, number=n, name=f"user {n}") for n in range(self.users)]
        self.member.objects.bulk_create(rows)
        self.calls = list(self._calls(orgs))

    def _calls(self, orgs: int) -> Iterator[Callable[[], Any]]:
        """Yield each question: a user by its key and by its number; of an org its users, their number, and itself."""
        for number in range(self.users):
            yield partial(self.member.objects.get, id=number)
            yield partial(self._by_number, number)
        for number in range(orgs):
            yield partial(self._users_of, number)
            yield partial(self._count_of, number)
            yield partial(self.org.objects.get, id=number)
        for number in range(self.given["pages"]):
            yield partial(self._page, number)

    def _by_number(self, number: int) -> list[Any]:
        return list(self.member.objects.filter(number=number))

    def _users_of(self, org: int) -> list[Any]:
        return list(self.member.objects.filter(org__id=org).select_related("org").order_by("id"))

    def _count_of(self, org: int) -> Any:
        return self.member.objects.filter(org_id=org).count()

    def _page(self, number: int) -> list[Any]:
        size = self.users // self.given["pages"]
        return list(self.member.objects.order_by("id")[number * size : (number + 1) * size])

    def read(self) -> int:
        """Ask for everything; give how much of it was not there."""
        before = self.sent
        with self.connection.execute_wrapper(self._count):
            for call in self.calls:
                call()
        return self.sent - before

    def _count(self, execute: Any, sql: str, parameters: Any, many: bool, context: Any) -> Any:
        self.sent += 1
        return execute(sql, parameters, many, context)

    def change(self, number: int, *, moved: bool = False) -> None:
        """Get, change, save, in a transaction."""
        with self._atomic():
            found = self.member.objects.get(id=number)
            found.name = f"{found.name.partition('-')[0]}-{next(self._names)}"
            if moved:
                found.org_id = 0 if found.org_id else 1
            found.save()

    def race(self, number: int) -> bool:
        """Have a reader load a user, a writer change it and commit, and then the reader store. Tell whether that stays.

        The reader goes on when the writer has told the cache all that it has to tell.
        """
        loaded, told, errors = threading.Event(), threading.Event(), list[BaseException]()

        def hold(execute: Any, sql: str, parameters: Any, many: bool, context: Any) -> Any:
            result = execute(sql, parameters, many, context)
            loaded.set()
            if not told.wait(_LIMIT_S):
                raise TimeoutError("the writer has not come to its end")
            return result

        def load() -> None:
            try:
                with self.connection.execute_wrapper(hold):
                    self._by_number(number)
            except BaseException as error:  # noqa: BLE001  # of a thread, which nobody else would see
                errors.append(error)
            finally:
                loaded.set()
                self.connection.close()

        self.change(number)  # so that there is something to load
        reader = threading.Thread(target=load)
        reader.start()
        loaded.wait(_LIMIT_S)
        self.change(number)
        told.set()
        reader.join()
        if errors:
            raise errors[0]
        (cached,) = self._by_number(number)
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT name FROM rivals_member WHERE number = %s", [number])
            ((name,),) = cursor.fetchall()
        return bool(cached.name != name)


def _app() -> str:
    """Make the package that the models belong to: cached rows name it."""
    package = ModuleType("rivals")
    package.__path__, package.__file__ = [], __file__
    sys.modules[package.__name__] = package
    return package.__name__


def _model(models: Any, kind: str, **fields: Any) -> Any:
    meta = type("Meta", (), {"app_label": "rivals", "db_table": f"rivals_{kind.lower()}"})
    return type(kind, (models.Model,), {"__module__": __name__, "Meta": meta, **fields})


@contextmanager
def committed() -> Iterator[list[float]]:
    """Note the moments at which COMMITs return."""
    base = import_module("django.db.backends.base.base").BaseDatabaseWrapper
    moments, commit = list[float](), base._commit

    def noting(connection: Any) -> None:
        commit(connection)
        moments.append(perf_counter())

    base._commit = noting
    try:
        yield moments
    finally:
        base._commit = commit


def main() -> None:
    """Read the settings, ask and write, and print what came of it."""
    given = json.loads(sys.argv[1])
    made = Application(given)
    made.read()
    assert made.read() == 0, "too little is stored"
    dropped, seconds = 0, list[float]()
    for number in range(given["writes"]):
        moved = number % given["moves"] == given["moves"] - 1
        with committed() as moments:
            made.change(7 * number % made.users, moved=moved)
            seconds.append(perf_counter() - moments[-1])
        dropped += made.read()
    stale = sum(made.race(number) for number in range(given["races"]))
    print(json.dumps({"entries": len(made.calls), "dropped": dropped, "seconds": seconds, "stale": stale}))


if __name__ == "__main__":
    main()
