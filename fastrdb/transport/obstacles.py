"""What entries may not be read for: an outage, an invalidation that is owed, data that is not to be trusted. Pure."""

from __future__ import annotations

from collections.abc import Callable

from fastrdb.events import Kind

Listener = Callable[[Kind, str], None]


class Obstacles(set[object]):
    """Who stands in the way of reading, nearly always nobody: on a hit one look has to do.

    Each change is told to `listeners`, with the kind of event that it is, and a detail.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listeners: list[Listener] = []

    def put_up(self, who: object, kind: Kind, detail: str = "") -> bool:
        """Let `who` stand in the way. False if it did already."""
        if who in self:
            return False
        self.add(who)
        self._tell(kind, detail)
        return True

    def take_down(self, who: object, kind: Kind, detail: str = "") -> bool:
        """Let it stand there no more. False if it did not."""
        if who not in self:
            return False
        self.discard(who)
        self._tell(kind, detail)
        return True

    def _tell(self, kind: Kind, detail: str) -> None:
        for listener in self.listeners:
            listener(kind, detail)
