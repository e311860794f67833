"""Commands around the daemon: init, config, service, dashboards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ingestor.cli.output import (
    PACKAGE,
    ConfigOption,
    Output,
    OutputOption,
    as_json,
    load_config,
    print_as,
    say,
    shipped,
    write_new,
)

config_app = typer.Typer(help="Look at the configuration.")
service_app = typer.Typer(help="Run under systemd.")
_DASHBOARDS = {
    "ingestor-dashboard.json": "in Grafana: Dashboards, New, Import",
    "ingestor-alerts.yaml": "in prometheus.yml: name it under rule_files",
}

dashboards_app = typer.Typer(help="See it in Grafana, and be told by Prometheus.")


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("config.yaml"),
) -> None:
    """Write a commented config.yaml, and its schema for editors, and say what comes next."""
    from ingestor.config import schema

    write_new(path, shipped("config.yaml"))
    schema_path = path.parent / "config.schema.json"
    if not schema_path.exists():
        write_new(schema_path, as_json(schema()) + "\n")
    option = "" if path == Path("config.yaml") else f" --config {path}"
    say(
        f"{path} is written. Next:\n"
        f"  1. install -m 600 /dev/stdin {path.parent / 'api_key'}    paste the key, Enter, Ctrl-D\n"
        f"  2. in {path}, under provider:, write  api_key_file: api_key  in place of the line that has it;\n"
        "     and under subscriptions: your tickers\n"
        f"  3. ingestor check --connect{option}    tries the whole way, and says what is wrong and where\n"
        f"  4. ingestor run{option}    until Ctrl-C; meanwhile: ingestor status, ingestor tail -f\n"
        "Without an account: ingestor demo"
    )


@config_app.command("show")
def config_show(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """Show the configuration as it is understood: file, environment and defaults; secrets as ***."""
    from ingestor.config import render, render_yaml

    loaded = load_config(config)
    print_as(output, render(loaded), lambda: render_yaml(loaded))


@config_app.command("schema")
def config_schema(output: OutputOption = Output.JSON) -> None:
    """Print the JSON Schema of config.yaml; as text, every key with its default and meaning."""
    from ingestor.config import outline, schema

    print_as(output, schema(), lambda: "\n".join(outline()))


@service_app.command("print")
def service_print() -> None:
    """Print the systemd unit: ingestor service print | sudo tee /etc/systemd/system/ingestor.service"""
    say(shipped("systemd/ingestor.service").rstrip())


@dashboards_app.command("export")
def dashboards_export(
    folder: Annotated[Path, typer.Argument(help="Where to; made if it is not there.", metavar="DIR")],
) -> None:
    """Write a dashboard for Grafana and alert rules for Prometheus into a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        pass  # writing into it says why
    for name, use in _DASHBOARDS.items():
        write_new(folder / name, (PACKAGE / "monitoring" / "dashboards" / name).read_text(encoding="utf-8"))
        say(f"{folder / name}: {use}")
