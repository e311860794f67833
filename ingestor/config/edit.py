"""Add tickers to the YAML file or remove them, and leave the rest of the text unchanged.

The text is cut at the offsets of its values and then parsed again. An edit whose result does not mean exactly what
was requested is rejected with the location to edit by hand. Where a subscription has a file of tickers, that file is
edited instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

from ingestor.config.subscriptions import expand_subscriptions
from ingestor.config.ticker_file import TickerFiles, append_lines, remove_lines
from ingestor.config.yaml_document import YamlDocument, YamlNode, line_and_column, parse_yaml
from ingestor.core.entries import canonical_json
from ingestor.errors import ConfigError, ConfigProblem

_PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_/.^=+-]*")  # needs no quotes in any context
_DASH = re.compile(r"[ ]*-[ ]+")
_LINE_END = re.compile(r"[ \t]*(#[^\n]*)?\r?")

ConfiguredKeys: TypeAlias = set[tuple[str, str, str]]  # (path, method, canonical params) of each subscription


def add_tickers(
    text: str, name: str, path: str, tickers: Sequence[str], files: TickerFiles | None = None, *, narrow: bool = False
) -> tuple[str, list[str]]:
    """Subscribe to tickers of a path in the text of the file ``name``. Return the new text and the tickers added.

    Adds to the file of tickers in ``files`` if the path has one of its own. An entry without tickers subscribes to all,
    so that nothing has to be added; with ``narrow`` it gets the tickers. Raises ConfigError, with the location, if the
    text cannot be edited safely.
    """
    editor = _Editor(text, name, files or TickerFiles())
    entries = editor.entries_for(path)
    known = {ticker for entry in entries for ticker in editor.tickers(entry)}
    all_entry = next((entry for entry in entries if not editor.tickers(entry)), None)
    missing = [ticker for ticker in dict.fromkeys(tickers) if ticker not in known]
    if not missing or (all_entry and not narrow):
        return text, []
    keys = editor.keys | {_key(path, ticker) for ticker in missing}
    if all_entry:
        changed, keys = editor.insert_tickers(all_entry, missing), keys - {(path, "get", canonical_json({}))}
    else:
        changed = editor.add(entries, path, missing)
    return editor.verify(changed, keys), missing


def remove_tickers(
    text: str, name: str, path: str, tickers: Sequence[str], files: TickerFiles | None = None
) -> tuple[str, list[str]]:
    """Remove tickers of a path. Return the new text and the tickers removed.

    An entry without tickers would subscribe to all, so that it goes with its last one; its file of tickers stays. A
    comment in a removed line is removed too. Raises ConfigError as ``add_tickers`` does, and if no subscription would
    be left.
    """
    files, unwanted = files or TickerFiles(), set(tickers)
    original = editor = _Editor(text, name, files)
    known = {ticker for entry in editor.entries_for(path) for ticker in editor.tickers(entry)}
    removed = [ticker for ticker in dict.fromkeys(tickers) if ticker in known]
    keys = original.keys - {_key(path, ticker) for ticker in removed}
    while entry := next((item for item in editor.entries_for(path) if unwanted & set(editor.tickers(item))), None):
        text = editor.remove(entry, unwanted)
        editor = _Editor(text, name, files)
    return original.verify(text, keys), removed


class _Editor:
    """A text, its meaning, and the operations that edit it."""

    def __init__(self, text: str, name: str, files: TickerFiles) -> None:
        self._text = text
        self._document = parse_yaml(text.encode(), name)
        self._files = files
        self._newline = "\r\n" if "\r\n" in text else "\n"

    @property
    def keys(self) -> ConfiguredKeys:
        return _subscription_keys(self._document, self._files)

    @property
    def subscriptions(self) -> YamlNode:
        content: Any = self._document.root.content
        node: YamlNode = content["subscriptions"][1]  # exists, because the file is valid
        return node

    def entries_for(self, path: str) -> list[YamlNode]:
        """Return the entries for this path that have only tickers, or nothing else."""
        return [entry for entry in _items(self.subscriptions) if _value(entry, "path") == path and _is_simple(entry)]

    def tickers(self, entry: YamlNode) -> list[str]:
        """Return the tickers that an entry names."""
        nodes = [*_items(_field(entry, "tickers")), _field(entry, "ticker"), _field(_field(entry, "params"), "ticker")]
        written = _value(entry, "tickers_file")
        listed = [found.ticker for found in self._files.read(written).tickers] if written else []
        return listed + [node.content for node in nodes if node and isinstance(node.content, str)]

    def add(self, entries: list[YamlNode], path: str, tickers: list[str]) -> str:
        """Add tickers to the last list of these entries, or in an entry after them."""
        with_file = [entry for entry in entries if _field(entry, "tickers_file")]
        own = [entry for entry in with_file if not self._is_shared(entry)]
        lists = [tickers_node for entry in entries if (tickers_node := _field(entry, "tickers"))]
        if own or (with_file and not lists):
            return self._edit_file((own or with_file)[-1], lambda text: append_lines(text, tickers))
        if lists:
            last = _items(lists[-1])[-1]
            words = [self.format_like(ticker, last) for ticker in tickers]
            return self.insert(lists[-1], last, ", ".join(words), [[word] for word in words])
        return self.insert_entry(entries[-1] if entries else None, path, tickers)

    def insert_tickers(self, entry: YamlNode, tickers: list[str]) -> str:
        """Insert the key ``tickers`` at the end of an entry."""
        content: Any = entry.content
        key, last = list(content.values())[-1]
        self._reject_alias(entry, last)
        text, quoted = self._text, self._text[key.start] == '"'
        words = ", ".join(json.dumps(ticker) if quoted else _format(ticker) for ticker in tickers)
        added = f'"tickers": [{words}]' if quoted else f"tickers: [{words}]"
        if entry.flow:
            return f"{text[: last.end]}, {added}{text[last.end :]}"
        offset, indentation = self._line_end(last), " " * (key.column - 1)
        newline = "" if text[:offset].endswith("\n") else self._newline
        return f"{text[:offset]}{newline}{indentation}{added}{'' if newline else self._newline}{text[offset:]}"

    def _edit_file(self, entry: YamlNode, edit: Callable[[str], str]) -> str:
        """Edit the file of tickers of an entry. Returns the text of the configuration, which stays as it is."""
        path = self._files.resolve(_value(entry, "tickers_file"))
        if self._is_shared(entry):
            self._fail(
                entry, f"other subscriptions use {path} too", "edit that file by hand, which changes all of them"
            )
        self._files.replace(path, edit(self._files.lists[path].text))
        return self._text

    def _is_shared(self, entry: YamlNode) -> bool:
        names = [_value(item, "tickers_file") for item in _items(self.subscriptions)]
        paths = [self._files.resolve(name) for name in names if name]
        return paths.count(self._files.resolve(_value(entry, "tickers_file"))) > 1

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

    def remove(self, entry: YamlNode, unwanted: set[str]) -> str:
        """Remove the whole entry if all its tickers are unwanted, else those in its file or the first of its list."""
        tickers = self.tickers(entry)
        if unwanted.issuperset(tickers):
            parent = self.subscriptions
            return self._remove_item(parent, next(i for i, item in enumerate(_items(parent)) if item is entry))
        if _field(entry, "tickers_file"):
            return self._edit_file(entry, lambda text: remove_lines(text, unwanted))
        listed = _field(entry, "tickers")
        assert listed is not None  # noqa: S101  # only a list has several
        return self._remove_item(listed, next(i for i, ticker in enumerate(tickers) if ticker in unwanted))

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
            is_correct = _settings(changed) == _settings(self._document)
            is_correct = is_correct and _subscription_keys(changed, self._files) == keys
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


def _key(path: str, ticker: str) -> tuple[str, str, str]:
    return path, "get", canonical_json({"ticker": ticker})


def _subscription_keys(document: YamlDocument, files: TickerFiles) -> ConfiguredKeys:
    written = document.value.get("subscriptions")
    found = expand_subscriptions(written, document.location_of, lambda _issue: None, files=files)
    return {subscription.key for subscription in found}


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
