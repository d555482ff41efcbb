"""For tests of code that uses fastrdb: a private server, clients and a network that misbehave on command, isolation.

The pytest plugin (fixtures `fastrdb_server`, `fastrdb_client`, `fastrdb_namespace`, `fastrdb_cache`) needs no import.
`import fastrdb` imports nothing of this package, and nothing here imports pytest.
"""

from .faults import FaultyClient, script_texts
from .gates import Gate, GatedClient, Gates
from .isolation import emptied, isolated
from .network import Direction, TcpProxy, Way
from .server import EmbeddedServer, EmbeddedServerError

__all__ = [
    "Direction",
    "EmbeddedServer",
    "EmbeddedServerError",
    "FaultyClient",
    "Gate",
    "GatedClient",
    "Gates",
    "TcpProxy",
    "Way",
    "emptied",
    "isolated",
    "script_texts",
]
