"""Write every key of the config into docs/configuration.md, from the schema.

usage: python -m tests.tools.configuration_page
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingestor.config.render import json_schema

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
BEGIN, END = "<!-- keys -->\n", "<!-- end of keys -->\n"  # the rest of the page is written by hand


def main() -> None:
    PAGE.write_text(render(PAGE.read_text()))


def render(page: str) -> str:
    """Return the page with its keys as the schema has them."""
    schema = json_schema()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    return "".join([before, BEGIN, *_sections(schema, schema["$defs"]), "\n", END, after])


def _sections(schema: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    top = {name: value for name, value in schema["properties"].items() if not _section_of(value)}
    yield _table("Top level", "", top, definitions)
    for name, value in schema["properties"].items():
        if section := _section_of(value):
            prefix = "" if "items" in value else f"{name}."
            yield _table(f"`{name}`", prefix, definitions[section]["properties"], definitions)


def _section_of(value: dict[str, Any]) -> str | None:
    reference = value.get("$ref") or value.get("items", {}).get("$ref")
    return reference and str(reference).rpartition("/")[2]


def _table(title: str, prefix: str, keys: dict[str, Any], definitions: dict[str, Any]) -> str:
    rows = "".join(_rows(prefix, keys, definitions))
    return f"\n## {title}\n\n| key | value | default | meaning |\n|---|---|---|---|\n{rows}"


def _rows(prefix: str, keys: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    for name, value in keys.items():
        if section := _section_of(value):
            yield from _rows(f"{prefix}{name}.", definitions[section]["properties"], definitions)
        else:
            default = _format_default(value.get("default"))
            meaning = value["description"].replace("|", "\\|")
            yield f"| `{prefix}{name}` | {_kind(value)} | {default} | {meaning} |\n"


def _format_default(default: Any) -> str:
    if default in (None, "", []):
        return ""
    if isinstance(default, list):
        return f"`[{', '.join(default)}]`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _kind(value: dict[str, Any]) -> str:
    """Return what the value may be, in words."""
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"] if isinstance(choice, str))
    pattern = str(value.get("pattern", ""))
    words = [f"`{word}`" for word in ("none", "forever") if f"^{word}$" in pattern]
    if "ms|" in pattern:
        return " or ".join(["duration", *words])
    if "KMGT" in pattern:
        return "size"
    if isinstance(value.get("type"), list):
        return "text"  # whatever YAML would make of it
    kinds = [str(option["type"]) for option in value.get("anyOf", [value]) if "type" in option]
    if kinds[:1] == ["integer"] and "maximum" in value:
        return f"{value['minimum']} to {value['maximum']}"
    names = {"string": "text", "boolean": "`true`, `false`", "array": "list", "object": "mapping", "null": ""}
    return " or ".join(filter(None, (names.get(kind, kind) for kind in kinds)))


if __name__ == "__main__":
    main()
