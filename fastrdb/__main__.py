"""`python -m fastrdb`: the command line."""

from __future__ import annotations

from fastrdb.cli import main

if __name__ == "__main__":
    main()
