"""Commands config show and config schema."""

from __future__ import annotations

import typer

from ingestor.cli.options import ConfigOption, Output, OutputOption, load_config
from ingestor.cli.output import print_result

config_app = typer.Typer(name="config", help="Show the configuration and its schema.")


@config_app.command("show")
def show(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """Show the effective configuration. Secrets are masked.

    The result of the file, the environment variables and the defaults.

    \b
    Example:
      INGESTOR_LOG__LEVEL=debug ingestor config show
    """
    from ingestor.config.render import render, render_yaml

    loaded = load_config(config)
    print_result(output, render(loaded), lambda: render_yaml(loaded))


@config_app.command("schema")
def schema(output: OutputOption = Output.JSON) -> None:
    """Print the JSON Schema of config.yaml.

    As text: one line per key, with its default and meaning.

    \b
    Example:
      ingestor config schema --output text
    """
    from ingestor.config.render import describe_keys, json_schema

    print_result(output, json_schema(), lambda: "\n".join(describe_keys()))
