"""The documents that come with the package, on a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

import fastrdb

_FOLDER = Path(fastrdb.__file__).parent / "docs"


def names() -> list[str]:
    """Return the names of all pages."""
    return sorted(page.stem for page in _FOLDER.glob("*.md"))


def read(name: str) -> str | None:
    """Return the text of a page, None if there is no such page."""
    return (_FOLDER / f"{name}.md").read_text("utf-8") if name in names() else None


def show(console: Console, text: str) -> None:
    """Print a page: as it is where the output is no terminal."""
    if not console.is_terminal:
        console.print(text)
    elif console.size.height < text.count("\n"):
        with console.pager(styles=True):
            console.print(Markdown(text))
    else:
        console.print(Markdown(text))
