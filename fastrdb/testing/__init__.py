"""For tests of code that uses fastrdb: clients that fail or stop when told to, and caches that keep apart.

The pytest plugin (fixtures `fastrdb_server`, `fastrdb_client`, `fastrdb_namespace`, `fastrdb_cache`) needs no import.
Nothing here is imported by `import fastrdb`, and nothing here imports pytest.
"""

from .faults import FaultyClient, script_texts
from .gates import Gate, GatedClient, Gates
from .isolation import emptied, isolated
from .server import EmbeddedServer, EmbeddedServerError

__all__ = [
    "EmbeddedServer",
    "EmbeddedServerError",
    "FaultyClient",
    "Gate",
    "GatedClient",
    "Gates",
    "emptied",
    "isolated",
    "script_texts",
]
