"""The gates that users get, under the name by which the tests know them."""

from fastrdb.testing.faults import script_texts
from fastrdb.testing.gates import Gate, GatedClient, Gates

__all__ = ["Gate", "GatedClient", "Gates", "script_texts"]
