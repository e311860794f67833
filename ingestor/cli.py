"""The command line: the only place that parses arguments, prints and exits. Data on stdout, all else on stderr.

Every command imports what it needs when it runs: `--help` loads no database or Socket.IO library.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestor import __version__
from ingestor.errors import ConfigError, IngestorError, Problem
from ingestor.redaction import redactor

if TYPE_CHECKING:
    from ingestor.config import Config

_HERE = Path(__file__).parent

# Tracebacks of the pretty kind print local variables, and with them secrets.
_PLAIN: Mapping[str, Any] = {
    "pretty_exceptions_enable": False,
    "no_args_is_help": True,
    "add_completion": False,
}
app = typer.Typer(help="Market Prophit's crowd sentiment to SQL: complete, once, gaps on record.", **_PLAIN)
config_app = typer.Typer(help="Look at the configuration.", **_PLAIN)
service_app = typer.Typer(help="Run under systemd.", **_PLAIN)
app.add_typer(config_app, name="config")
app.add_typer(service_app, name="service")


class Output(StrEnum):
    """How a command shows what it has read."""

    TEXT = "text"
    JSON = "json"


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Default: $INGESTOR_CONFIG, ./config.yaml, /etc/ingestor/config.yaml",
        show_default=False,
    ),
]
OutputOption = Annotated[Output, typer.Option("--output", help="For people, or for programs.")]


def main() -> None:
    """Run the command. Errors end the process with their own exit code, in plain words and without secrets."""
    try:
        app(prog_name="ingestor")
    except IngestorError as error:
        _exit_with(str(error), error.exit_code)
    except Exception:
        _exit_with(f"{traceback.format_exc()}This is a mistake in the ingestor.", IngestorError.exit_code)


def _exit_with(message: str, code: int) -> None:
    print(redactor.scrub(message), file=sys.stderr)
    sys.exit(code)


def _say(text: str) -> None:
    """Print data. Ends the command in peace if whoever read it has seen enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The interpreter flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None


def _show_version(wanted: bool) -> None:
    if wanted:
        _say(f"ingestor {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Nothing is done before the command itself."""


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("config.yaml"),
) -> None:
    """Write a commented config.yaml, and its schema for editors, and say what comes next."""
    from ingestor.config import schema

    _write_new(path, _shipped("config.yaml"))
    schema_path = path.parent / "config.schema.json"
    if not schema_path.exists():
        _write_new(schema_path, _json(schema()) + "\n")
    option = "" if path == Path("config.yaml") else f" --config {path}"
    _say(
        f"{path} is written. Next:\n"
        f"  1. install -m 600 /dev/stdin {path.parent / 'api_key'}    paste the provider's key, end with Ctrl-D;\n"
        f"     name the file in {path}: provider.api_key_file: api_key\n"
        f"  2. ingestor check{option}    says everything that is wrong, with line and column\n"
        f"  3. ingestor run{option}\n"
        "Without an account: ingestor demo"
    )


@config_app.command("show")
def config_show(config: ConfigOption = None, output: OutputOption = Output.TEXT) -> None:
    """Show the configuration as it is understood: file, environment and defaults; secrets as ***."""
    from ingestor.config import render, render_yaml

    loaded = _load(config)
    _print_as(output, render(loaded), lambda: render_yaml(loaded))


@config_app.command("schema")
def config_schema(output: OutputOption = Output.JSON) -> None:
    """Print the JSON Schema of config.yaml; as text, every key with its default and meaning."""
    from ingestor.config import outline, schema

    _print_as(output, schema(), lambda: "\n".join(outline()))


@service_app.command("print")
def service_print() -> None:
    """Print the systemd unit: ingestor service print | sudo tee /etc/systemd/system/ingestor.service"""
    _say(_shipped("systemd/ingestor.service").rstrip())


def _load(path: Path | None) -> Config:
    """The configuration, its secrets known to the redactor, unknown endpoints said once each on stderr."""
    from ingestor.config import load, secrets_of

    config = load(path)
    for secret in secrets_of(config):
        redactor.add(secret)
    _warn_of_unknown_endpoints(config)
    return config


def _warn_of_unknown_endpoints(config: Config) -> None:
    from ingestor.provider.catalog import unknown_path_warning

    places = {one.where: one for one in config.subscriptions}  # a list of tickers stands at one place
    for where, one in places.items():
        if warning := unknown_path_warning(one.path):
            print(Problem(where, f"{one.entry}.path", warning), file=sys.stderr)


def _print_as(output: Output, data: Any, text: Callable[[], str]) -> None:
    _say(_json(data) if output is Output.JSON else text())


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)


def _shipped(name: str) -> str:
    """The text of a file that ships with the program: ``_name`` in the package, else ``name`` in a checkout."""
    packaged = _HERE / f"_{name}"
    return (packaged if packaged.exists() else _HERE.parent / name).read_text(encoding="utf-8")


def _write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet. Raises ConfigError, with nothing changed, if it is or cannot be."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        message = "is there already, and is left as it is; remove it, or name another file"
    except OSError as error:
        message = f"cannot be written ({os.strerror(error.errno or 0)}); name a file in a folder of yours"
    else:
        return
    raise ConfigError([Problem(str(path), "", message)])


if __name__ == "__main__":
    main()
