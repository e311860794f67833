"""Write Market Prophit's crowd sentiment to a SQL database. The packages, lowest first:

    errors      every exception, named for what its caller does next
    core        what every package may import: entries, times, clock, backoff, threads, files, redaction, version
    config      YAML, environment and secrets as one frozen Config
    spool       the durable queue between socket and database
    store       SQL: schema and migrations; write/, read/, maintenance/ and copy/
    provider    everything that knows the provider: catalog, REST, auth/, socket/, subscriptions/
    monitoring  what people, Prometheus and systemd see: status, metrics, logs, HTTP server, page, dashboards
    pipeline    from the spool to the store: decode, batch, write
    simulator   a provider of our own, for the demo and the tests
    repair      finds gaps, requests what is missing and verifies the response
    daemon      builds everything once, owns every task and signal, drains in order
    commands    what the larger commands do and say: check, demo, replay, tail -f, and what works without a daemon
    cli         one file per command; parses arguments, calls, writes to the terminal and exits

Imports point one way: errors < core < (config, spool) < (store, provider, monitoring) < (pipeline, simulator) < repair
< daemon < commands < cli. tests/unit/test_layers.py checks this, and the order inside provider and store.

For analysts: ``ingestor.read`` and ``ingestor.read_batches`` return observations as Arrow tables, ``ingestor.changes``
what became known since a cursor.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingestor.store.read.arrow_table import read as read
    from ingestor.store.read.arrow_table import read_batches as read_batches
    from ingestor.store.read.changes import changes as changes

__version__ = "0.2.0"
_MODULES = {"read": "arrow_table", "read_batches": "arrow_table", "changes": "changes"}


def __getattr__(name: str) -> Any:
    """Import what is for analysts when it is first used: SQLAlchemy and pyarrow take a second."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ingestor.store.read.{_MODULES[name]}"), name)
