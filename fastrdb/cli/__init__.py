"""The `fastrdb` command: names the extra to install if a package is missing, else runs the command."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec

# The name of each module, and of the distribution that has it.
_TOOLS = {"typer": "typer", "rich": "rich"}
_DEMO = {**_TOOLS, "fastapi": "fastapi", "uvicorn": "uvicorn", "email_validator": "email-validator"}


def main() -> None:
    """Run the command line. Ends the process: 1 with a message if something is missing, else the command's status."""
    if sys.argv[1:2] == ["demo"]:
        _require(_DEMO, "demo")
        from fastrdb.demo.command import run  # noqa: PLC0415  # needs the packages that were just checked
    else:
        _require(_TOOLS, "cli")
        from .commands import run  # noqa: PLC0415  # likewise
    run()


def _require(needed: Mapping[str, str], extra: str) -> None:
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        print(f'Not installed: {", ".join(missing)}. Install them: pip install -e ".[{extra}]"', file=sys.stderr)
        raise SystemExit(1)
