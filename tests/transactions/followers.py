"""A cache that follows writes, and only notes the images that it is given at each commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any, cast

from fastrdb.keys import Image
from fastrdb.protocol import Intent


class NotingIntent:
    """An intent without Redis."""

    def __init__(self, images: list[Image]) -> None:
        self.images = images
        self.loop = asyncio.get_running_loop()
        self.pending = False

    def add(self, prefixes: Iterable[Any] = (), keys: Iterable[str] = (), images: Iterable[Image] = ()) -> None:
        """Note the images."""
        self.images += images

    def distrust(self) -> None:
        """Distrust nothing: nothing was put."""

    async def begin(self) -> None:
        """Bar nothing."""

    async def end(self, committed: bool) -> None:
        """End nothing."""

    def abandon(self) -> None:
        """Repair nothing."""


class NotingFollower:
    """A follower that has entries tagged by these columns."""

    def __init__(self, columns: Mapping[str, Collection[str]]) -> None:
        self.columns = columns
        self.reads_rows = True
        self.effects: dict[str, frozenset[str]] = {}
        self.views: dict[str, frozenset[str]] = {}
        self.quiet: dict[str, frozenset[str]] = {}
        self.images: list[Image] = []
        self.tracked = True

    def is_untracked(self) -> bool:
        """Return what the test has set."""
        return not self.tracked

    def tag_columns(self, table: str) -> Collection[str]:
        """Return the columns that entries are tagged by."""
        return self.columns.get(table, ())

    def intent(self) -> tuple[Hashable, Callable[[], Intent]] | None:
        """Return an intent that notes its images here."""
        return self, lambda: cast("Intent", NotingIntent(self.images))
