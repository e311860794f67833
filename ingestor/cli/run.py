"""Command run."""

from __future__ import annotations

from ingestor.cli.options import ConfigOption, load_config


def run(config: ConfigOption = None) -> None:
    """Run the daemon: receive and write until SIGTERM.

    Writes what is spooled before it exits. SIGHUP reloads the configuration. Exits with 69 if a service cannot be
    reached, 74 if the spool cannot be written, 75 if another process holds the spool or the SQLite database, 77 if
    permission is missing, 78 if the configuration or the schema is wrong.

    \b
    Example:
      ingestor run --config /etc/ingestor/config.yaml
    """
    import asyncio
    import logging
    import os
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # pending until the daemon can reload

    from ingestor.config import require_api_key

    loaded = load_config(config)  # before the imports that take long: its errors appear at once
    api_key = require_api_key(loaded)

    from ingestor.core.os_errors import raise_descriptor_limit
    from ingestor.daemon.interpreter_tuning import tune_interpreter
    from ingestor.daemon.service import Service
    from ingestor.monitoring import log_setup

    log_setup.configure(loaded.log.level, loaded.log.format)
    log_setup.log_uncaught_errors()
    raise_descriptor_limit()
    service = Service(loaded, api_key)
    tune_interpreter()
    with asyncio.Runner(loop_factory=service.make_loop) as runner:
        runner.run(service.run())
    logging.shutdown()
    # A thread that still waits for a server or a disk might not survive the end of the interpreter.
    os._exit(0)
