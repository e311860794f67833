"""Writes Market Prophit's crowd sentiment to a SQL database. The rooms, in the order in which data meets them:

    config     what the operator told us: YAML and environment, as one frozen Config
    provider   everything that knows the provider or Socket.IO: token, dialect, connection, supervisor, simulator
    pipeline   from frame to row: entry, spool, decode, batch, writer
    store      SQL: tables and views, the idempotent write, the questions that status asks
    ops        what people, Prometheus and systemd see
    service    builds everything once, owns every task and signal, drains in order
    cli        the only place that parses arguments, prints and exits

Imports point one way: errors < config < (provider, pipeline, store, ops) < service < cli.
"""

__version__ = "0.1.0"
