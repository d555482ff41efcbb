"""The `fastrdb` command: says what to install where the extra `demo` is missing, and hands over to the demo."""

from __future__ import annotations

import sys
from importlib.util import find_spec

# What is imported, and what it is called where it is installed from.
_NEEDED = {
    "typer": "typer",
    "rich": "rich",
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "email_validator": "email-validator",
}


def main() -> None:
    """Run the command line. Ends the process: 0 if all went well, 1 with a message if something is missing."""
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        print(f'Not installed: {", ".join(missing)}. Install them: pip install "fastrdb[demo]"', file=sys.stderr)
        raise SystemExit(1)
    from fastrdb.demo.command import run  # noqa: PLC0415  # needs what has just been looked for

    run()
