"""The operator's YAML with a ticker more or less, as if by hand: all else stays as it was written. Pure.

The text is cut by the places of its values, and then read again: what does not mean exactly what was asked for is
refused, and the operator is told where to edit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias

from ingestor.config.model import canonical_json
from ingestor.config.subscriptions import expand_subscriptions
from ingestor.config.yaml_document import YamlDocument, YamlNode, line_and_column, parse_yaml
from ingestor.errors import ConfigError, ConfigProblem

_PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_/.^=+-]*")  # needs no quotes, wherever it stands
_DASH = re.compile(r"[ ]*-[ ]+")
_REST = re.compile(r"[ \t]*(#[^\n]*)?\r?")

ConfiguredKeys: TypeAlias = set[tuple[str, str, str]]  # (path, method, canonical params) of each subscription


def add_tickers(text: str, name: str, path: str, tickers: Sequence[str]) -> tuple[str, list[str]]:
    """The text of the file ``name`` with these tickers of the path asked for, and which of them were not before.

    Raises ConfigError, with the place, where they cannot be written in safely.
    """
    edit = _Edit(text, name)
    entries = edit.entries(path)
    known = {ticker for one in entries for ticker in _tickers(one)}
    every = any(not _tickers(one) for one in entries)  # all tickers are asked for
    added = [] if every else [ticker for ticker in dict.fromkeys(tickers) if ticker not in known]
    if not added:
        return text, []
    lists = [found for one in entries if (found := _field(one, "tickers"))]
    if lists:
        last = _items(lists[-1])[-1]
        words = [edit.word(ticker, last) for ticker in added]
        changed = edit.insert(lists[-1], last, ", ".join(words), [[word] for word in words])
    else:
        changed = edit.insert_entry(entries[-1] if entries else None, path, added)
    return edit.proven(changed, edit.asked | {_key(path, ticker) for ticker in added}), added


def remove_tickers(text: str, name: str, path: str, tickers: Sequence[str]) -> tuple[str, list[str]]:
    """The text without them, and which of them it named. The comment in a removed line goes with it.

    Raises ConfigError as ``add``, also where nothing would be left to collect.
    """
    removed = []
    for ticker in dict.fromkeys(tickers):
        edit = _Edit(text, name)
        entry = next((one for one in edit.entries(path) if ticker in _tickers(one)), None)
        if entry is not None:
            text = edit.proven(edit.without(entry, ticker), edit.asked - {_key(path, ticker)})
            removed.append(ticker)
    return text, removed


class _Edit:
    """One text, what it means, and the ways to cut it."""

    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._document = parse_yaml(text.encode(), name)
        self.asked = _asked(self._document)
        self._newline = "\r\n" if "\r\n" in text else "\n"

    @property
    def subscriptions(self) -> YamlNode:
        content: Any = self._document.root.content
        node: YamlNode = content["subscriptions"][1]  # there, or the file had no subscription
        return node

    def entries(self, path: str) -> list[YamlNode]:
        """Items for this path that name tickers, or none, and nothing else."""
        return [one for one in _items(self.subscriptions) if _value(one, "path") == path and _is_simple(one)]

    def insert_entry(self, after: YamlNode | None, path: str, tickers: list[str]) -> str:
        """Another item, behind an item or all of them."""
        holder = self.subscriptions
        last = after or _items(holder)[-1]
        lines = [f"path: {_plain(path)}", f"tickers: [{', '.join(map(_plain, tickers))}]"]
        inline = f"{{{', '.join(lines)}}}"
        if self._text[_first_key(last).start] == '"':  # a file that is JSON as well stays so
            inline = json.dumps({"path": path, "tickers": tickers}, ensure_ascii=False)
        return self.insert(holder, last, inline, [lines])

    def insert(self, holder: YamlNode, after: YamlNode, inline: str, blocks: list[list[str]]) -> str:
        """More items in a list, behind the item ``after``: as they are written in brackets, or each behind a dash."""
        if holder.alias or after.alias:
            self._refuse(holder if holder.alias else after, "an alias (*name) stands here")
        text = self._text
        if holder.flow:
            return f"{text[: after.end]}, {inline}{text[after.end :]}"
        prefix, place = self._dash(after), self._line_end(after)
        indented = self._newline + " " * len(prefix)
        added = self._newline.join(prefix + indented.join(lines) for lines in blocks)
        if place == len(text) and not text.endswith("\n"):
            return f"{text}{self._newline}{added}"
        return f"{text[:place]}{added}{self._newline}{text[place:]}"

    def without(self, entry: YamlNode, ticker: str) -> str:
        """The list without the ticker, or without the entry where that names no other."""
        named = _field(entry, "tickers")
        if named and len(_items(named)) > 1:
            return self.cut(named, _tickers(entry).index(ticker))
        holder = self.subscriptions
        return self.cut(holder, next(place for place, one in enumerate(_items(holder)) if one is entry))

    def cut(self, holder: YamlNode, index: int) -> str:
        """A list without one of its items."""
        items = _items(holder)
        if holder.alias or items[index].alias:
            self._refuse(holder if holder.alias else items[index], "an alias (*name) stands here")
        if len(items) == 1:
            self._refuse(items[index], "nothing would be left to collect", "stop the daemon instead")
        if holder.flow:
            return self._cut_inline(holder, items, index)
        self._dash(items[index])
        start, end = self._line_start(items[index]), self._line_end(items[index])
        if end == len(self._text) and not self._text.endswith("\n"):
            start -= len(self._newline)  # the file ends without a newline, and shall do so
        return self._text[:start] + self._text[end:]

    def _cut_inline(self, holder: YamlNode, items: list[YamlNode], index: int) -> str:
        item, text = items[index], self._text
        last = index + 1 == len(items)
        before = self._comma(items[index - 1].end, item.start) if index else None
        behind = self._comma(item.end, holder.end if last else items[index + 1].start)
        # The comma behind it; of a last item the one before it, which ``insert`` writes, unless that ends another line.
        takes_before = last and before is not None and (behind is None or "\n" not in text[before : item.start])
        comma = before if takes_before else behind
        if comma is None:
            self._refuse(item, "its commas cannot be told from what stands beside them")
        (start, between), (resumed, end) = sorted([(item.start, item.end), (comma, self._past_blanks(comma + 1))])
        kept = text[:start] + text[between:resumed]
        return _without_blank_line(kept + text[end:], len(kept))

    def _past_blanks(self, place: int) -> int:
        past = place + len(self._text[place:]) - len(self._text[place:].lstrip(" \t"))
        return place if self._text.startswith("#", past) else past  # a comment needs the blank before it

    def word(self, text: str, like: YamlNode) -> str:
        """A text as it is written beside another."""
        return json.dumps(text, ensure_ascii=False) if self._text[like.start] == '"' else _plain(text)

    def proven(self, text: str, asked: ConfiguredKeys) -> str:
        """The text, if it asks for exactly this and says all else as before. Raises ConfigError."""
        try:
            changed = parse_yaml(text.encode(), self._document.name)
            same = _others(changed) == _others(self._document) and _asked(changed) == asked
        except ConfigError:
            same = False
        if not same:
            self._refuse(self.subscriptions, "the list is not written in a way that this command understands")
        return text

    def _dash(self, item: YamlNode) -> str:
        prefix = self._text[self._line_start(item) : item.start]
        if not _DASH.fullmatch(prefix):
            self._refuse(item, "the item does not stand behind a dash of its own")
        return prefix

    def _line_start(self, item: YamlNode) -> int:
        return self._text.rfind("\n", 0, item.start) + 1

    def _line_end(self, item: YamlNode) -> int:
        """Behind the newline of the item's last line."""
        if self._text[item.end - 1] == "\n":
            return item.end
        end = self._text.find("\n", item.end)
        end = len(self._text) if end < 0 else end
        if not _REST.fullmatch(self._text[item.end : end]):
            self._refuse(item, "something else stands in the same line")
        return min(end + 1, len(self._text))

    def _comma(self, start: int, end: int) -> int | None:
        """The comma between two places where no value is, but perhaps a comment."""
        for found in re.finditer(r"#[^\n]*|,", self._text[start:end]):
            if found[0] == ",":
                return start + found.start()
        return None

    def _refuse(self, node: YamlNode, why: str, remedy: str = "edit the file by hand") -> NoReturn:
        line, column = line_and_column(self._text[: node.start])  # an alias's own place is its anchor's
        where = f"{self._document.name}:{line}:{column}"
        raise ConfigError([ConfigProblem(where, "subscriptions", f"cannot be edited safely: {why}; {remedy}")])


def _items(holder: YamlNode | None) -> list[YamlNode]:
    return holder.content if holder and isinstance(holder.content, list) else []


def _first_key(entry: YamlNode) -> YamlNode:
    content: Any = entry.content
    first: YamlNode = next(key for key, _ in content.values())
    return first


def _field(entry: YamlNode | None, key: str) -> YamlNode | None:
    """The node of a key; None if there is none."""
    return entry.content[key][1] if entry and isinstance(entry.content, dict) and key in entry.content else None


def _value(entry: YamlNode, key: str) -> Any:
    found = _field(entry, key)
    return found.content if found else None


def _is_simple(entry: YamlNode) -> bool:
    params = _value(entry, "params") or {}
    return set(params) <= {"ticker"} and str(_value(entry, "method") or "get").lower() == "get"


def _tickers(entry: YamlNode) -> list[str]:
    """Those that an entry names."""
    places = [*_items(_field(entry, "tickers")), _field(entry, "ticker"), _field(_field(entry, "params"), "ticker")]
    return [one.content for one in places if one and isinstance(one.content, str)]


def _key(path: str, ticker: str) -> tuple[str, str, str]:
    return path, "get", canonical_json({"ticker": ticker})


def _asked(document: YamlDocument) -> ConfiguredKeys:
    found = expand_subscriptions(document.value.get("subscriptions"), document.location_of, lambda _complaint: None)
    return {one.key for one in found}


def _others(document: YamlDocument) -> dict[str, Any]:
    return {key: value for key, value in document.value.items() if key != "subscriptions"}


def _plain(text: str) -> str:
    plain = _PLAIN.fullmatch(text) and text != "null"
    return text if plain else json.dumps(text, ensure_ascii=False)


def _without_blank_line(text: str, place: int) -> str:
    """The text without the line of this place, if nothing is left in it."""
    start = text.rfind("\n", 0, place) + 1
    end = text.find("\n", place)
    if start == 0 or end < 0 or text[start:end].strip():
        return text
    return text[:start] + text[end + 1 :]
