"""Read YAML so that every scalar is text and every value knows its line and column.

``ON``, ``NO``, ``007``, ``1E5`` and ``2024-01-01`` are tickers here, not booleans, numbers or dates. This module uses
the parser's events instead of its nodes, because libyaml's composer overflows the C stack on a file of a hundred
thousand brackets; the limits below apply long before that. ``model`` defines what the keys mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeAlias

import yaml

from ingestor.errors import ConfigError, ConfigProblem

Loc: TypeAlias = tuple[str | int, ...]  # the path from the top: ("subscriptions", 2, "path")

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 16  # the configuration itself has four levels
MAX_VALUES = 1_000_000  # after expanding aliases: a few lines of them can stand for billions of values

# The C parser is five times as fast, but not every build of PyYAML has it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS = frozenset({"", "~", "null"})  # NULL and Null stay text, because they may be tickers
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PLAIN_TAGS = frozenset({None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))})

_INDENTATION = "the indentation does not match the lines above; align keys of one level in one column"
_NO_ANCHOR = "an alias (*name) has no anchor (&name); put a text that begins with * in quotes"
_NO_TAGS = "YAML tags (!name) are not supported; remove it, or put the text in quotes"
_TOO_DEEP = f"is nested more than {MAX_DEPTH} levels deep; the configuration needs four"

# Parser message -> what to do. Parser messages that may quote the file are never shown, because a text that begins
# with * or ! may be a secret.
_REMEDIES = (
    ("cannot start any token", 'a text cannot begin with this character; put it in quotes: "…"'),
    ("undefined alias", _NO_ANCHOR),
    ("tag", _NO_TAGS),
    ("mapping values are not allowed", 'unexpected ":"; quote the text, or correct the indentation'),
    ("expected ':'", 'this is not "key: value"; add the colon and a space, or correct the indentation'),
    ("expected ',' or", "a bracket is not closed, or a comma is missing before this place"),
    ("end of stream", "a quote is not closed"),
    ("expected key", _INDENTATION),
    ("expected '-' indicator", _INDENTATION),
    ("expected <block end>", _INDENTATION),
    ("maximum nesting depth", _TOO_DEEP),  # since PyYAML 6.0.4, libyaml has a limit of 1,000, before any event
)


@dataclass(frozen=True, slots=True)
class YamlNode:
    """A value and its position; lines and columns count from 1. A mapping also has the node of each key.

    ``start`` and ``end`` are offsets in the text, for editing. A block ends with the last value in it.
    """

    line: int
    column: int
    content: str | list[YamlNode] | dict[str, tuple[YamlNode, YamlNode]] | None
    start: int
    end: int
    flow: bool = False  # [a list], {a: mapping}
    alias: bool = False  # its text is elsewhere


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """The contents of a YAML file, with positions. ``problems`` are errors that did not prevent reading the rest."""

    name: str  # of the file, for messages
    root: YamlNode
    value: dict[str, Any]  # nested dicts and lists of text; None where nothing is written
    problems: list[ConfigProblem] = field(default_factory=list)

    def location_of(self, loc: Loc, *, key: bool = False) -> str:
        """Return ``file:line:column`` of a value or its key, or of the nearest enclosing value that exists."""
        node = self.root
        for depth, part in enumerate(loc, start=1):
            content = node.content
            if isinstance(content, dict) and isinstance(part, str) and part in content:
                node = content[part][0 if key and depth == len(loc) else 1]
            elif isinstance(content, list) and isinstance(part, int) and part < len(content):
                node = content[part]
            else:
                break
        return _location(self.name, node.line, node.column)


def parse_yaml(raw: bytes, name: str) -> YamlDocument:
    """Parse one YAML document whose top level is a mapping.

    Raises ConfigError with one problem if size, encoding, syntax or nesting prevent reading the rest.
    """
    text = _decode(raw, name)
    reader = _EventReader(name, text)
    root = reader.read_document()
    if root is None:
        raise ConfigError([ConfigProblem(name, "", "is empty; `ingestor init` writes one with comments")])
    if not isinstance(root.content, dict):
        message = 'must be a mapping at the top level; begin with a key such as "provider:"'
        raise ConfigError([ConfigProblem(_location(name, root.line, root.column), "", message)])
    return YamlDocument(name=name, root=root, value=reader.plain(root), problems=reader.problems)


def line_and_column(before: str) -> tuple[int, int]:
    """Return line and column, from 1, of the position after this text."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _location(name: str, line: int, column: int) -> str:
    return f"{name}:{line}:{column}"


def _decode(raw: bytes, name: str) -> str:
    if len(raw) > MAX_BYTES:
        raise ConfigError([ConfigProblem(name, "", f"is larger than {MAX_BYTES >> 20} MiB; is it the right file?")])
    position = None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Only the position is kept: the text of the exception quotes the file.
        position = line_and_column(raw[: error.start].decode("utf-8", "replace"))
    if position:
        raise ConfigError([ConfigProblem(_location(name, *position), "", "is not UTF-8; save the file as UTF-8")])
    if found := _UNPRINTABLE.search(text):
        line, column = line_and_column(text[: found.start()])
        message = f"contains the control character U+{ord(found[0]):04X}; remove it"
        raise ConfigError([ConfigProblem(_location(name, line, column), "", message)])
    return text


class _EventReader:
    """Builds nodes from the parser's events, within the limits."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self._anchors: dict[str, YamlNode] = {}
        self._end = 0  # of the last value so far
        self._count = 0  # of plain values
        self.problems: list[ConfigProblem] = []

    def read_document(self) -> YamlNode | None:
        """Return the root of the only document, or None if there is none."""
        try:
            root = self._read_root()
        except yaml.YAMLError as error:
            problem = self._explain(error)
        else:
            return root
        raise ConfigError([problem])

    def plain(self, node: YamlNode, depth: int = 0) -> Any:
        """Convert a node to plain values, and expand aliases."""
        self._count += 1
        if self._count > MAX_VALUES or depth > MAX_DEPTH:
            message = "its aliases stand for too many values; write them out"
            raise ConfigError([ConfigProblem(_location(self._name, node.line, node.column), "", message)])
        if isinstance(node.content, dict):
            return {text: self.plain(value, depth + 1) for text, (_, value) in node.content.items()}
        if isinstance(node.content, list):
            return [self.plain(item, depth + 1) for item in node.content]
        return node.content

    def _read_root(self) -> YamlNode | None:
        next(self._events)  # start of the stream
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        root = self._node(next(self._events), 0)
        next(self._events)  # end of the document
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            self._fail(after, "a second document begins here; remove the line ---, and write one document")
        return root

    def _node(self, event: Any, depth: int) -> YamlNode:
        if depth > MAX_DEPTH:
            self._fail(event, _TOO_DEEP)
        if isinstance(event, yaml.AliasEvent):
            return self._resolve_alias(event)
        mark = event.start_mark
        self._end = event.end_mark.index
        content = self._content(event, depth)
        flow = bool(getattr(event, "flow_style", False))
        node = YamlNode(mark.line + 1, mark.column + 1, content, mark.index, self._end, flow)
        if event.tag not in _PLAIN_TAGS:
            self._report(event, _NO_TAGS)
        if event.anchor:
            self._anchors[event.anchor] = node  # not earlier: an alias inside its own anchor would never end
        return node

    def _content(self, event: yaml.Event, depth: int) -> Any:
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(depth)
        assert isinstance(event, yaml.ScalarEvent)  # noqa: S101  # the grammar allows nothing else here
        is_null = not event.style and event.tag is None and event.value in _NULLS
        return None if is_null else event.value

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
                self._report(event, "a key must be a single text")
            elif text == "<<":
                self._report(event, "merge keys (<<) are not supported; write the keys out")
            elif text in pairs:
                line = pairs[text][0].line
                self._report(event, f'duplicate key "{text}", first in line {line}; keep one of the two')
            else:
                pairs[text] = (key, value)
        self._close(event)
        return pairs

    def _close(self, event: Any) -> None:
        # The end of a block has no text of its own: the parser places it at the next token, after any comments.
        if event.end_mark.index > event.start_mark.index:
            self._end = event.end_mark.index

    def _resolve_alias(self, event: Any) -> YamlNode:
        node = self._anchors.get(event.anchor or "") or self._fail(event, _NO_ANCHOR)
        self._end = event.end_mark.index
        return replace(node, start=event.start_mark.index, end=self._end, alias=True)

    def _report(self, event: yaml.Event, message: str) -> None:
        self.problems.append(ConfigProblem(self._locate(event.start_mark), "", message))

    def _fail(self, event: yaml.Event, message: str) -> NoReturn:
        raise ConfigError([ConfigProblem(self._locate(event.start_mark), "", message)])

    def _locate(self, mark: Any) -> str:
        return _location(self._name, mark.line + 1, mark.column + 1)

    def _explain(self, error: yaml.YAMLError) -> ConfigProblem:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or "is not YAML"
        if mark is None:
            return ConfigProblem(self._name, "", reason)
        lines = self._text.splitlines()
        line = lines[mark.line] if mark.line < len(lines) else ""
        if line[mark.column : mark.column + 1] == "\t":
            return ConfigProblem(self._locate(mark), "", "a tab is used for indentation; indent with spaces")
        remedy = next((remedy for fragment, remedy in _REMEDIES if fragment in reason), reason)
        start = getattr(error, "context_mark", None)
        opened = f" (begun in line {start.line + 1})" if start and start.line != mark.line else ""
        return ConfigProblem(self._locate(mark), "", remedy + opened)
