"""YAML as the operator wrote it: every scalar is text, and every value knows its line and column.

``ON``, ``NO``, ``007``, ``1E5`` and ``2024-01-01`` are tickers here, not booleans, numbers or dates. Built on
the parser's events and not on its nodes: libyaml's composer overflows the C stack on a file of a hundred
thousand brackets, and the bounds below stop long before. What the keys mean is left to ``model``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeAlias

import yaml

from ingestor.errors import ConfigError, ConfigProblem

Loc: TypeAlias = tuple[str | int, ...]  # the way from the top: ("subscriptions", 2, "path")

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 16  # the configuration itself is four deep
MAX_VALUES = 1_000_000  # after aliases are followed: a few lines of them can stand for billions

# The C parser is five times as fast, where it was built in.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS = frozenset({"", "~", "null"})  # NULL and Null stay text, as a ticker may be spelled so
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PLAIN_TAGS = frozenset({None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))})

_INDENTATION = "the indentation does not fit the lines above; keys of one level begin in one column"
_NO_ANCHOR = "an alias (*name) without its anchor (&name); put a text that begins with * in quotes"
_NO_TAGS = "YAML tags (!name) are not used here; remove it, or put the text in quotes"

# What the parser complains of → what to do about it. Never its own words where they could quote the file: a
# text that begins with * or ! may be a secret.
_REMEDIES = (
    ("cannot start any token", 'a text cannot begin with this character; put it in quotes: "…"'),
    ("undefined alias", _NO_ANCHOR),
    ("tag", _NO_TAGS),
    ("mapping values are not allowed", 'a ":" is not expected here; quote the text, or mend the indentation'),
    ("expected ':'", 'this is not "key: value"; add the colon and a blank, or mend the indentation'),
    ("expected ',' or", "the brackets are not closed, or a comma is missing before this place"),
    ("end of stream", "a quote is opened and not closed"),
    ("expected key", _INDENTATION),
    ("expected '-' indicator", _INDENTATION),
    ("expected <block end>", _INDENTATION),
)


@dataclass(frozen=True, slots=True)
class YamlNode:
    """One value and where it stands, from 1. A mapping keeps the node of each key beside its value's.

    ``start`` and ``end`` are its place in the text, for who edits that; a block ends with the last value in it.
    """

    line: int
    column: int
    content: str | list[YamlNode] | dict[str, tuple[YamlNode, YamlNode]] | None
    start: int
    end: int
    flow: bool = False  # [a list], {a: mapping}
    alias: bool = False  # written elsewhere


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """What one YAML file says, and where. ``problems`` is what was wrong and did not hide the rest of it."""

    name: str  # the file as the operator knows it
    root: YamlNode
    value: dict[str, Any]  # nested dicts and lists of text; None where nothing is written
    problems: list[ConfigProblem] = field(default_factory=list)

    def location_of(self, loc: Loc, *, key: bool = False) -> str:
        """``file:line:column`` of a value (or its key); or of what is nearest around it."""
        node = self.root
        for depth, part in enumerate(loc, start=1):
            content = node.content
            if isinstance(content, dict) and isinstance(part, str) and part in content:
                node = content[part][0 if key and depth == len(loc) else 1]
            elif isinstance(content, list) and isinstance(part, int) and part < len(content):
                node = content[part]
            else:
                break
        return _place(self.name, node.line, node.column)


def parse_yaml(raw: bytes, name: str) -> YamlDocument:
    """Read one YAML document whose top is a mapping.

    Raises ConfigError, with one problem, for what makes the rest unreadable: size, encoding, syntax, nesting.
    """
    text = _decoded(raw, name)
    reader = _EventReader(name, text)
    root = reader.document()
    if root is None:
        raise ConfigError([ConfigProblem(name, "", "is empty; `ingestor init` writes one with comments")])
    if not isinstance(root.content, dict):
        message = 'must be a mapping at the top; begin with "provider:" and the like'
        raise ConfigError([ConfigProblem(_place(name, root.line, root.column), "", message)])
    return YamlDocument(name=name, root=root, value=_PlainValues(name).plain(root, 0), problems=reader.problems)


def _place(name: str, line: int, column: int) -> str:
    return f"{name}:{line}:{column}"


def _decoded(raw: bytes, name: str) -> str:
    if len(raw) > MAX_BYTES:
        raise ConfigError([ConfigProblem(name, "", f"is larger than {MAX_BYTES >> 20} MiB; is it the right file?")])
    error = None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as bad:
        # The position is kept and the exception dropped: its text quotes the file.
        error = line_and_column(raw[: bad.start].decode("utf-8", "replace"))
    if error:
        raise ConfigError([ConfigProblem(_place(name, *error), "", "is not UTF-8 text; save the file as UTF-8")])
    if strange := _UNPRINTABLE.search(text):
        line, column = line_and_column(text[: strange.start()])
        message = f"holds the control character U+{ord(strange[0]):04X}; remove it"
        raise ConfigError([ConfigProblem(_place(name, line, column), "", message)])
    return text


def line_and_column(before: str) -> tuple[int, int]:
    """Line and column, from 1, of what follows this text."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


class _EventReader:
    """Turns the parser's events into nodes, and stops at the bounds."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=_LOADER)
        self._anchors: dict[str, YamlNode] = {}
        self._end = 0  # of the last value so far
        self.problems: list[ConfigProblem] = []

    def document(self) -> YamlNode | None:
        """The one document's top; None if there is none."""
        try:
            root = self._first()
        except yaml.YAMLError as error:
            problem = self._explained(error)
        else:
            return root
        raise ConfigError([problem])

    def _first(self) -> YamlNode | None:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        root = self._node(next(self._events), 0)
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            self._fail(after, "a second document begins here; write one, without a line ---")
        return root

    def _node(self, event: yaml.Event, depth: int) -> YamlNode:
        if depth > MAX_DEPTH:
            self._fail(event, f"is nested more than {MAX_DEPTH} deep; the configuration needs four")
        if isinstance(event, yaml.AliasEvent):
            return self._aliased(event)
        mark: Any = event.start_mark
        end: Any = event.end_mark
        self._end = end.index
        content = self._content(event, depth)
        flow = bool(getattr(event, "flow_style", False))
        node = YamlNode(mark.line + 1, mark.column + 1, content, mark.index, self._end, flow)
        if getattr(event, "tag", None) not in _PLAIN_TAGS:
            self._report(event, _NO_TAGS)
        if getattr(event, "anchor", None):
            # Known from here on only: an alias inside its own anchor would never end.
            self._anchors[event.anchor] = node  # type: ignore[attr-defined]
        return node

    def _content(self, event: yaml.Event, depth: int) -> Any:
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(depth)
        assert isinstance(event, yaml.ScalarEvent)  # noqa: S101  # the grammar leaves nothing else
        nothing = not event.style and event.tag is None and event.value in _NULLS
        return None if nothing else event.value

    def _sequence(self, depth: int) -> list[YamlNode]:
        items = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        self._close(event)
        return items

    def _mapping(self, depth: int) -> dict[str, tuple[YamlNode, YamlNode]]:
        pairs: dict[str, tuple[YamlNode, YamlNode]] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            value = self._node(next(self._events), depth + 1)
            text = key.content if key.content is not None else "null"
            if not isinstance(text, str):
                self._report(event, "a key must be one text")
            elif text == "<<":
                self._report(event, "merge keys (<<) are not used here; write the keys out")
            elif text in pairs:
                line = pairs[text][0].line
                self._report(event, f'the key "{text}" stands already in line {line}; keep one of the two')
            else:
                pairs[text] = (key, value)
        self._close(event)
        return pairs

    def _close(self, event: Any) -> None:
        # A block has no bracket: the parser ends it where the next one begins, behind what is said between the two.
        if event.end_mark.index > event.start_mark.index:
            self._end = event.end_mark.index

    def _aliased(self, event: yaml.AliasEvent) -> YamlNode:
        node = self._anchors.get(event.anchor or "") or self._fail(event, _NO_ANCHOR)
        start: Any = event.start_mark
        end: Any = event.end_mark
        self._end = end.index
        return replace(node, start=start.index, end=end.index, alias=True)

    def _report(self, event: yaml.Event, message: str) -> None:
        self.problems.append(ConfigProblem(self._at(event.start_mark), "", message))

    def _fail(self, event: yaml.Event, message: str) -> NoReturn:
        raise ConfigError([ConfigProblem(self._at(event.start_mark), "", message)])

    def _at(self, mark: Any) -> str:
        return _place(self._name, mark.line + 1, mark.column + 1)

    def _explained(self, error: yaml.YAMLError) -> ConfigProblem:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or "is not YAML"
        if mark is None:
            return ConfigProblem(self._name, "", said)
        lines = self._text.splitlines()
        line = lines[mark.line] if mark.line < len(lines) else ""
        if line[mark.column : mark.column + 1] == "\t":
            return ConfigProblem(self._at(mark), "", "a tab stands where YAML wants blanks; indent with blanks")
        remedy = next((remedy for fragment, remedy in _REMEDIES if fragment in said), said)
        begun = getattr(error, "context_mark", None)
        opened = f" (begun in line {begun.line + 1})" if begun and begun.line != mark.line else ""
        return ConfigProblem(self._at(mark), "", remedy + opened)


class _PlainValues:
    """Plain values from nodes, aliases followed, within the bounds."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0

    def plain(self, node: YamlNode, depth: int) -> Any:
        self._count += 1
        if self._count > MAX_VALUES or depth > MAX_DEPTH:
            message = "its aliases stand for too many values; write them out"
            raise ConfigError([ConfigProblem(_place(self._name, node.line, node.column), "", message)])
        if isinstance(node.content, dict):
            return {text: self.plain(value, depth + 1) for text, (_, value) in node.content.items()}
        if isinstance(node.content, list):
            return [self.plain(item, depth + 1) for item in node.content]
        return node.content
