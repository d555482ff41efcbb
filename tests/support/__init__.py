"""The rooms of what the tests share: servers, the network, a small world, programs, and the source itself."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The folder of the project."""
