"""Add tickers to the YAML file or remove them, and leave the rest of the text unchanged.

The text is cut at the offsets of its values and then parsed again. An edit whose result does not mean exactly what
was requested is rejected with the location to edit by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias

from ingestor.config.subscriptions import expand_subscriptions
from ingestor.config.yaml_document import YamlDocument, YamlNode, line_and_column, parse_yaml
from ingestor.core.entries import canonical_json
from ingestor.errors import ConfigError, ConfigProblem

_PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_/.^=+-]*")  # needs no quotes in any context
_DASH = re.compile(r"[ ]*-[ ]+")
_LINE_END = re.compile(r"[ \t]*(#[^\n]*)?\r?")

ConfiguredKeys: TypeAlias = set[tuple[str, str, str]]  # (path, method, canonical params) of each subscription


def add_tickers(text: str, name: str, path: str, tickers: Sequence[str]) -> tuple[str, list[str]]:
    """Subscribe to tickers of a path in the text of the file ``name``. Return the new text and the tickers added.

    Raises ConfigError, with the location, if the text cannot be edited safely.
    """
    editor = _Editor(text, name)
    entries = editor.entries_for(path)
    known = {ticker for entry in entries for ticker in _tickers(entry)}
    has_all = any(not _tickers(entry) for entry in entries)  # an entry without tickers subscribes to all
    added = [] if has_all else [ticker for ticker in dict.fromkeys(tickers) if ticker not in known]
    if not added:
        return text, []
    lists = [tickers_node for entry in entries if (tickers_node := _field(entry, "tickers"))]
    if lists:
        last = _items(lists[-1])[-1]
        words = [editor.format_like(ticker, last) for ticker in added]
        changed = editor.insert(lists[-1], last, ", ".join(words), [[word] for word in words])
    else:
        changed = editor.insert_entry(entries[-1] if entries else None, path, added)
    return editor.verify(changed, editor.keys | {_key(path, ticker) for ticker in added}), added


def remove_tickers(text: str, name: str, path: str, tickers: Sequence[str]) -> tuple[str, list[str]]:
    """Remove tickers of a path. Return the new text and the tickers removed.

    A comment in a removed line is removed too. Raises ConfigError as ``add_tickers`` does, and if no subscription would
    be left.
    """
    removed = []
    for ticker in dict.fromkeys(tickers):
        editor = _Editor(text, name)
        entry = next((entry for entry in editor.entries_for(path) if ticker in _tickers(entry)), None)
        if entry is not None:
            text = editor.verify(editor.remove(entry, ticker), editor.keys - {_key(path, ticker)})
            removed.append(ticker)
    return text, removed


class _Editor:
    """A text, its meaning, and the operations that edit it."""

    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._document = parse_yaml(text.encode(), name)
        self.keys = _subscription_keys(self._document)
        self._newline = "\r\n" if "\r\n" in text else "\n"

    @property
    def subscriptions(self) -> YamlNode:
        content: Any = self._document.root.content
        node: YamlNode = content["subscriptions"][1]  # exists, because the file is valid
        return node

    def entries_for(self, path: str) -> list[YamlNode]:
        """Return the entries for this path that have only tickers, or nothing else."""
        return [entry for entry in _items(self.subscriptions) if _value(entry, "path") == path and _is_simple(entry)]

    def insert_entry(self, after: YamlNode | None, path: str, tickers: list[str]) -> str:
        """Insert an entry after another, or at the end."""
        parent = self.subscriptions
        last = after or _items(parent)[-1]
        lines = [f"path: {_format(path)}", f"tickers: [{', '.join(map(_format, tickers))}]"]
        inline = f"{{{', '.join(lines)}}}"
        content: Any = last.content
        first_key, _ = next(iter(content.values()))
        if self._text[first_key.start] == '"':  # a file that is valid JSON stays valid JSON
            inline = json.dumps({"path": path, "tickers": tickers}, ensure_ascii=False)
        return self.insert(parent, last, inline, [lines])

    def insert(self, parent: YamlNode, after: YamlNode, inline: str, blocks: list[list[str]]) -> str:
        """Insert items after another: ``inline`` in a list in brackets, else each of ``blocks`` after a dash."""
        self._reject_alias(parent, after)
        text = self._text
        if parent.flow:
            return f"{text[: after.end]}, {inline}{text[after.end :]}"
        prefix, offset = self._dash(after), self._line_end(after)
        indented = self._newline + " " * len(prefix)
        added = self._newline.join(prefix + indented.join(lines) for lines in blocks)
        if offset == len(text) and not text.endswith("\n"):
            return f"{text}{self._newline}{added}"
        return f"{text[:offset]}{added}{self._newline}{text[offset:]}"

    def remove(self, entry: YamlNode, ticker: str) -> str:
        """Remove a ticker, or the whole entry if it has no other."""
        tickers = _field(entry, "tickers")
        if tickers and len(_items(tickers)) > 1:
            return self._remove_item(tickers, _tickers(entry).index(ticker))
        parent = self.subscriptions
        return self._remove_item(parent, next(i for i, item in enumerate(_items(parent)) if item is entry))

    def _remove_item(self, parent: YamlNode, index: int) -> str:
        items = _items(parent)
        self._reject_alias(parent, items[index])
        if len(items) == 1:
            self._fail(items[index], "no subscription would be left", "stop the daemon instead")
        if parent.flow:
            return self._remove_inline(parent, items, index)
        self._dash(items[index])
        start, end = self._line_start(items[index]), self._line_end(items[index])
        if end == len(self._text) and not self._text.endswith("\n"):
            start -= len(self._newline)  # the file had no newline at its end, and gets none
        return self._text[:start] + self._text[end:]

    def _remove_inline(self, parent: YamlNode, items: list[YamlNode], index: int) -> str:
        item, text = items[index], self._text
        is_last = index + 1 == len(items)
        before = self._find_comma(items[index - 1].end, item.start) if index else None
        after = self._find_comma(item.end, parent.end if is_last else items[index + 1].start)
        # Remove the comma after the item. For the last item, remove the one before it, which ``insert`` adds, unless
        # that one ends another line.
        takes_before = is_last and before is not None and (after is None or "\n" not in text[before : item.start])
        comma = before if takes_before else after
        if comma is None:
            self._fail(item, "its commas cannot be distinguished from the text around them")
        (start, between), (resumed, end) = sorted([(item.start, item.end), (comma, self._skip_blanks(comma + 1))])
        kept = text[:start] + text[between:resumed]
        return _drop_blank_line(kept + text[end:], len(kept))

    def _skip_blanks(self, offset: int) -> int:
        end = offset + len(self._text[offset:]) - len(self._text[offset:].lstrip(" \t"))
        return offset if self._text.startswith("#", end) else end  # a comment needs the blank before it

    def format_like(self, text: str, other: YamlNode) -> str:
        """Format a text, with double quotes if another node has them."""
        return json.dumps(text, ensure_ascii=False) if self._text[other.start] == '"' else _format(text)

    def verify(self, text: str, keys: ConfiguredKeys) -> str:
        """Return the text if it has exactly these subscriptions and is otherwise equivalent. Raises ConfigError."""
        try:
            changed = parse_yaml(text.encode(), self._document.name)
            is_correct = _settings(changed) == _settings(self._document) and _subscription_keys(changed) == keys
        except ConfigError:
            is_correct = False
        if not is_correct:
            self._fail(self.subscriptions, "this command does not support the layout of the list")
        return text

    def _dash(self, item: YamlNode) -> str:
        prefix = self._text[self._line_start(item) : item.start]
        if not _DASH.fullmatch(prefix):
            self._fail(item, "the item does not follow a dash in the same line")
        return prefix

    def _line_start(self, item: YamlNode) -> int:
        return self._text.rfind("\n", 0, item.start) + 1

    def _line_end(self, item: YamlNode) -> int:
        """Return the offset after the newline of the item's last line."""
        if self._text[item.end - 1] == "\n":
            return item.end
        end = self._text.find("\n", item.end)
        end = len(self._text) if end < 0 else end
        if not _LINE_END.fullmatch(self._text[item.end : end]):
            self._fail(item, "the same line contains something else")
        return min(end + 1, len(self._text))

    def _find_comma(self, start: int, end: int) -> int | None:
        """Return the offset of the comma in a range without values, which may contain comments."""
        found = re.finditer(r"#[^\n]*|,", self._text[start:end])
        return next((start + match.start() for match in found if match[0] == ","), None)

    def _reject_alias(self, *nodes: YamlNode) -> None:
        for node in nodes:
            if node.alias:
                self._fail(node, "there is an alias (*name) here")

    def _fail(self, node: YamlNode, reason: str, remedy: str = "edit the file by hand") -> NoReturn:
        line, column = line_and_column(self._text[: node.start])  # line and column of an alias are its anchor's
        location = f"{self._document.name}:{line}:{column}"
        raise ConfigError([ConfigProblem(location, "subscriptions", f"cannot be edited safely: {reason}; {remedy}")])


def _items(node: YamlNode | None) -> list[YamlNode]:
    return node.content if node and isinstance(node.content, list) else []


def _field(entry: YamlNode | None, key: str) -> YamlNode | None:
    """Return the node of a key's value, or None."""
    return entry.content[key][1] if entry and isinstance(entry.content, dict) and key in entry.content else None


def _value(entry: YamlNode, key: str) -> Any:
    node = _field(entry, key)
    return node.content if node else None


def _is_simple(entry: YamlNode) -> bool:
    params = _value(entry, "params") or {}
    return set(params) <= {"ticker"} and str(_value(entry, "method") or "get").lower() == "get"


def _tickers(entry: YamlNode) -> list[str]:
    """Return the tickers that an entry names."""
    nodes = [*_items(_field(entry, "tickers")), _field(entry, "ticker"), _field(_field(entry, "params"), "ticker")]
    return [node.content for node in nodes if node and isinstance(node.content, str)]


def _key(path: str, ticker: str) -> tuple[str, str, str]:
    return path, "get", canonical_json({"ticker": ticker})


def _subscription_keys(document: YamlDocument) -> ConfiguredKeys:
    written = document.value.get("subscriptions")
    return {found.key for found in expand_subscriptions(written, document.location_of, lambda _issue: None)}


def _settings(document: YamlDocument) -> dict[str, Any]:
    return {key: value for key, value in document.value.items() if key != "subscriptions"}


def _format(text: str) -> str:
    is_plain = _PLAIN.fullmatch(text) and text != "null"
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def _drop_blank_line(text: str, offset: int) -> str:
    """Remove the line at this offset if it is blank."""
    start = text.rfind("\n", 0, offset) + 1
    end = text.find("\n", offset)
    if start == 0 or end < 0 or text[start:end].strip():
        return text
    return text[:start] + text[end + 1 :]
