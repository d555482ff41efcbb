"""The reports of a watcher: events of its cache, and log records with the same facts as fields.

A record has its fields in the attribute `fastrdb`, a dictionary, for a formatter that writes them: see
`fastrdb watch run --json`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fastrdb.transport import address_of

from .failure import kind_of, reason_of, side_of

if TYPE_CHECKING:
    from fastrdb.cache import Cache

    from .source import Poll

logger = logging.getLogger("fastrdb")


class Telemetry:
    """The events and the log of one watcher. Each method reports what has just happened."""

    def __init__(self, cache: Cache, source: str) -> None:
        self._counters = cache.runtime.counters("Watcher")
        self._source, self._namespace = source, cache.namespace
        self._redis = address_of(cache.redis)
        self._troubles = set[tuple[str | None, str]]()
        self._lead_is_due = False
        self._tables = set[str]()

    @property
    def is_troubled(self) -> bool:
        """Return whether an outage has begun and has not ended."""
        return bool(self._troubles)

    def leads(self) -> None:
        """Report that the watcher leads; in an outage not before the first poll, which may fail again and again."""
        self._lead_is_due = True
        if not self._troubles:
            self._report_lead()

    def _report_lead(self) -> None:
        if self._lead_is_due:
            self._lead_is_due = False
            self._counters.count("lead", self._source)
            self._log(logging.INFO, "lead", "leads")

    def leads_no_more(self, reason: str) -> None:
        """Report that the watcher no longer leads, if its lead was reported."""
        if not self._lead_is_due:
            self._counters.count("lead_end", self._source, reason)
            self._log(logging.INFO, "lead_end", f"leads no more: {reason}", reason=reason)

    def waits(self, leader: str, heartbeat: float | None, *, late: bool) -> None:
        """Report that another watcher leads.

        Args:
            leader: a description of its session.
            heartbeat: seconds since its heartbeat in this Redis; None if there is none.
            late: whether the heartbeat should be younger by now.
        """
        text = f"waits: {leader} leads"
        if late:
            text += (
                f", and leaves no heartbeat{self._place} for the namespace {self._namespace!r}: it serves another"
                " Redis, or does not reach this one. An outbox is read for one Redis and one namespace"
            )
        level = logging.WARNING if late else logging.INFO
        self._log(level, "wait", text, leader=leader, heartbeat=heartbeat)

    def failed(self, error: Exception) -> None:
        """Report the first failure of an outage as an event, and each kind of failure of it once in the log."""
        kind, side, reason = kind_of(error), side_of(error), reason_of(error)
        if not self._troubles:
            self._counters.count("outage", self._source, kind)
        if (side, kind) not in self._troubles:
            where = f"Redis{self._place}" if side == "Redis" else f"the {side}" if side else "a fault of fastrdb"
            text = f"{where}: {reason}. Changes wait, and the watcher tries again each second"
            # The text of a fault may have values.
            fault = None if side else RuntimeError(reason).with_traceback(error.__traceback__)
            self._log(logging.WARNING, "outage", text, error=fault, side=side, reason=reason)
        self._troubles.add((side, kind))

    @property
    def _place(self) -> str:
        return f" at {self._redis}" if self._redis else ""

    def works(self) -> None:
        """Report the end of an outage, if there was one."""
        if self._troubles:
            self._troubles.clear()
            self._counters.count("recovery", self._source)
            self._log(logging.INFO, "recovery", "works again")

    def refused(self, error: Exception) -> None:
        """Report that the watcher ends, because of an error that a retry cannot mend."""
        self._log(logging.ERROR, "refused", f"the watcher ends: {error}", reason=str(error))

    def lost(self, reason: str) -> None:
        """Report that changes may be missing, before everything is invalidated."""
        self._counters.count("lost", self._source, reason)
        self._log(logging.WARNING, "lost", f"{reason}: everything is invalidated", reason=reason)

    def passed_on(self, tables: Iterable[str | None]) -> None:
        """Note the tables whose changes have reached Redis, for `polled`."""
        self._tables.update(table or "*" for table in tables)

    def polled(self, poll: Poll, lag: float | None) -> None:
        """Report the changes of a poll, if there are any, and the longest delay since a commit of them.

        Args:
            poll: a poll whose position is stored.
            lag: in seconds; None for the first poll.
        """
        self._report_lead()
        tables, self._tables = sorted(self._tables), set()
        if not poll.found:
            return
        self._counters.count("change", self._source, seconds=lag, count=poll.found)
        fields: dict[str, Any] = {"tables": tables, "changes": poll.found, "position": poll.position}
        if lag is not None:
            fields["lag"] = round(lag, 6)
        self._log(logging.DEBUG, "change", f"{poll.found} changes of {', '.join(tables)}", **fields)

    def _log(self, level: int, event: str, text: str, *, error: Exception | None = None, **fields: Any) -> None:
        named = {"event": event, "source": self._source, "namespace": self._namespace}
        logger.log(
            level, "fastrdb watch: %s: %s", self._source, text, exc_info=error, extra={"fastrdb": named | fields}
        )
