"""Commands service print and dashboards export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ingestor.cli.output import PACKAGE, echo, package_file, write_new_file
from ingestor.errors import ConfigError, ConfigProblem

service_app = typer.Typer(name="service", help="Print the systemd unit.")
dashboards_app = typer.Typer(name="dashboards", help="Write a Grafana dashboard and Prometheus alert rules.")

_DASHBOARDS = {
    "ingestor-dashboard.json": "in Grafana: Dashboards, New, Import",
    "ingestor-alerts.yaml": "in prometheus.yml: add it to rule_files",
}


@service_app.command("print")
def service_print() -> None:
    """Print the systemd unit.

    \b
    Example:
      ingestor service print | sudo tee /etc/systemd/system/ingestor.service
    """
    echo(package_file("systemd/ingestor.service").rstrip())


@dashboards_app.command("export")
def dashboards_export(
    folder: Annotated[Path, typer.Argument(help="Target folder. Created if it does not exist.", metavar="DIR")],
) -> None:
    """Write a Grafana dashboard and Prometheus alert rules.

    \b
    Example:
      ingestor dashboards export monitoring
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot be created ({os.strerror(error.errno or 0)}); name a folder that you may write to"
        raise ConfigError([ConfigProblem(str(folder), "", message)]) from None
    for name, usage in _DASHBOARDS.items():
        write_new_file(folder / name, (PACKAGE / "monitoring" / "dashboards" / name).read_text(encoding="utf-8"))
        echo(f"{folder / name}: {usage}")
