"""Commands service print and dashboards export."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from ingestor.cli.output import PACKAGE, echo, package_file, write_new_file

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
    with suppress(OSError):  # write_new_file reports the reason
        folder.mkdir(parents=True, exist_ok=True)
    for name, usage in _DASHBOARDS.items():
        write_new_file(folder / name, (PACKAGE / "monitoring" / "dashboards" / name).read_text(encoding="utf-8"))
        echo(f"{folder / name}: {usage}")
