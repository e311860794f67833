"""Writes Market Prophit's crowd sentiment to a SQL database. The rooms, in the order in which data meets them:

    errors     what can go wrong, each named for what its caller does next
    commit     which commit of the repository this program is
    disk       what a power cut must not take
    redaction  takes secrets out of text that people will read
    config     what the operator told us: YAML and environment, as one frozen Config
    lock       one process at a time: who holds the spool, and the SQLite database
    provider   everything that knows the provider or Socket.IO: token, dialect, connection, supervisor, simulator
    pipeline   from frame to row: entry, spool, decode, batch, writer
    store      SQL: tables and views, the idempotent write, the questions that status asks
    ops        what people, Prometheus and systemd see
    reload     the config in force, and what becomes of a new one
    following  observations as they are committed
    healing    repairs gaps: by what came since, by what is current, by what past days were
    control    the socket through which commands ask the running daemon
    building   the daemon's parts as the config wants them
    snapshot   the daemon now, of all its parts, for whoever asks
    service    builds everything once, owns every task and signal, drains in order
    checking   what `check` looks at before the daemon runs
    probing    what `check --connect` tries: the whole way once, and nothing is kept
    replaying  tells another database what the configured one was told
    offline    what commands do themselves when no daemon runs
    demo       simulator and daemon in a temporary folder
    cli        the only place that parses arguments, prints and exits

Imports point one way: (errors, commit, disk, redaction) < (config, lock) < (provider, pipeline, store, ops) <
(reload, following, healing, control) < (building, snapshot) < (service, checking) <
(probing, replaying, offline, demo) < cli.
"""

__version__ = "0.1.0"
