"""Command audit."""

from __future__ import annotations

from dataclasses import asdict

import typer

from ingestor.cli.options import ConfigOption, Output, OutputOption, load_config, open_database
from ingestor.cli.output import print_result, printable


def audit(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """Prove that every entry received is accounted for.

    Checks that each sequence number up to the spool's head is exactly one of payload, fact, dead letter or still
    spooled, and that the rows decoded equal new + revised + duplicate + dead rows. Also reports known losses. Exits
    with 1 if anything does not balance.

    \b
    Example:
      ingestor audit
    """
    from ingestor.store.read import audit as store_audit

    loaded = load_config(config)
    with open_database(loaded) as engine:
        issues = store_audit.audit(engine, samples_pruned=loaded.database.retention.samples is not None)
        losses = store_audit.find_losses(engine)
    lines = [f"! {loss.check}: {loss.message}" for loss in losses]
    lines += [f"✗ {issue.check}: {issue.message}" for issue in issues] or ["✓ everything balances"]
    data = {"balanced": not issues, "findings": list(map(asdict, issues)), "notes": list(map(asdict, losses))}
    print_result(output, data, lambda: "\n".join(map(printable, lines)))
    if issues:
        raise typer.Exit(1)
