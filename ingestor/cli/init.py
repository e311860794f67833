"""Command init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ingestor.cli.output import echo, package_file, to_json, write_new_file


def init(path: Annotated[Path, typer.Argument(help="Configuration file to write.")] = Path("config.yaml")) -> None:
    """Write a commented config.yaml and show the next steps.

    Also writes config.schema.json beside it, with which editors complete and check the file. An existing file is not
    overwritten.

    \b
    Example:
      ingestor init
    """
    from ingestor.config.render import json_schema

    write_new_file(path, package_file("config.yaml"))
    schema_path = path.parent / "config.schema.json"
    if not schema_path.exists():
        write_new_file(schema_path, to_json(json_schema()) + "\n")
    option = "" if path == Path("config.yaml") else f" --config {path}"
    echo(
        f"Wrote {path}. Next:\n"
        f"  1. install -m 600 /dev/stdin {path.parent / 'api_key'}    paste the key, Enter, Ctrl-D\n"
        f"  2. in {path}, uncomment the key under provider:, so that it reads  api_key_file: api_key  and\n"
        "     list your tickers under subscriptions:\n"
        f"  3. ingestor check --connect{option}    tests everything from login to database\n"
        f"  4. ingestor run{option}    runs until Ctrl-C; meanwhile: ingestor status, ingestor tail -f\n"
        "Without an account: ingestor demo"
    )
