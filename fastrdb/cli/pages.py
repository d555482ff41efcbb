"""The documents that come with the package, on a terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, MarkdownElement, TableElement
from rich.table import Table

import fastrdb

_FOLDER = Path(fastrdb.__file__).parent / "docs"


class _WholeTable(TableElement):
    """A table that wraps long words: by default rich cuts off words that a narrow column cannot hold."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in super().__rich_console__(console, options):
            for column in part.columns if isinstance(part, Table) else ():
                column.overflow = "fold"
            yield part


class Page(Markdown):
    """A page for a terminal."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "table_open": _WholeTable}


def names() -> list[str]:
    """Return the names of all pages."""
    return sorted(page.stem for page in _FOLDER.glob("*.md"))


def read(name: str) -> str | None:
    """Return the text of a page, None if there is no such page."""
    return (_FOLDER / f"{name}.md").read_text("utf-8") if name in names() else None


def show(console: Console, text: str) -> None:
    """Print a page, formatted for a terminal, or as it is if the output is no terminal."""
    if not console.is_terminal:
        console.print(text)
    elif console.size.height < text.count("\n"):
        os.environ["LESS"] = f"-R {os.environ.get('LESS', '')}"  # without it `less` shows colours as their codes
        with console.pager(styles=True):
            console.print(Page(text))
    else:
        console.print(Page(text))
