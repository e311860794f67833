"""Read what is left of a damaged spool, page by page and without SQLite, which gives up at the first wrong page.

Every page of the file, and every version of it in the WAL, is searched for rows of ``chunks``. The checksum of a chunk
proves that it is whole, so nothing that leads there (the schema, inner pages of the tree, free lists) is needed.
The format is described in https://www.sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

from ingestor.core.entries import Entry
from ingestor.errors import SpoolFailed
from ingestor.spool.chunk_store import ChunkRow, SpoolUnreadable, unpack
from ingestor.spool.mark import MARK, read_mark

_MAGIC = b"SQLite format 3\0"
_WAL_HEADER_BYTES, _FRAME_HEADER_BYTES = 32, 24
_LEAF_OF_TABLE = 0x0D
_DEFAULT_PAGE_BYTES = 4096
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # serial type → size
_ID = re.compile("[0-9a-f]{32}")

_Value: TypeAlias = "int | bytes | None"


class SeqRange(NamedTuple):
    """Consecutive entries."""

    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a row was found."""

    offset: int  # of the page
    in_wal: bool
    cell: int


class _WalFrame(NamedTuple):
    page: int
    offset: int  # of the page's content
    salt: bytes
    is_commit: bool


class SalvagedSpool:
    """A spool that was set aside. Reading changes nothing in its folder."""

    def __init__(self, folder: Path) -> None:
        """Find the chunks that can be read. Raises SpoolFailed if there is no spool in the folder, and OSError."""
        self._path = folder / "spool.db"
        self._places: dict[int, tuple[int, _Place]] = {}  # first_seq → last_seq, and where the chunk is
        self.spool_id: str | None = None  # None: unknown, because the header cannot be read
        self.next_seq = 0  # of the header; 0 if unknown
        mark = read_mark(folder / MARK)
        self.run_ids: set[str] = {mark.run_id} if mark else set()  # of the daemons that wrote to this spool
        with _Pages(self._path) as pages:
            for place, values in pages.rows():
                self._add(pages, place, values)

    def _add(self, pages: _Pages, place: _Place, values: Sequence[_Value]) -> None:
        match values:
            case [int(number), None, bytes(run_id), int()] if number and _is_id(run_id):
                self.run_ids.add(run_id.decode())
            case [_, int(), bytes(spool_id), int(next_seq), int(), int(), *_] if _is_id(spool_id):
                if next_seq > self.next_seq:
                    self.spool_id, self.next_seq = spool_id.decode(), next_seq
            case [int(first_seq), None, int(last_seq), int(), int(), bytes()] if first_seq not in self._places:
                if _unpack(values) is not None:
                    self._places[first_seq] = last_seq, place

    def readable_after(self, seq: int) -> list[SeqRange]:
        """The entries past ``seq`` that can be read, in order."""
        later = (readable._replace(first_seq=max(readable.first_seq, seq + 1)) for readable in self.readable)
        return [readable for readable in later if readable.first_seq <= readable.last_seq]

    @property
    def recognized(self) -> bool:
        """Whether anything in the folder is part of a spool."""
        return bool(self._places or self.spool_id or self.run_ids)

    @property
    def readable(self) -> list[SeqRange]:
        """The entries that can be read, in order. Ranges that adjoin are one."""
        ranges: list[SeqRange] = []
        for first_seq, (last_seq, _) in sorted(self._places.items()):
            if ranges and first_seq <= ranges[-1].last_seq + 1:
                ranges[-1] = ranges[-1]._replace(last_seq=max(last_seq, ranges[-1].last_seq))
            else:
                ranges.append(SeqRange(first_seq, last_seq))
        return ranges

    def read(self) -> Iterator[Entry]:
        """Yield the readable entries in order, each once. Raises SpoolFailed."""
        upto = 0
        with _Pages(self._path) as pages:
            for _, (last_seq, place) in sorted(self._places.items()):
                if last_seq <= upto:
                    continue
                entries = _unpack(pages.row(place))
                if entries is None:
                    raise SpoolFailed(f"{self._path}: changed while it was read; repeat the command")
                yield from (entry for entry in entries if entry[0] > upto)
                upto = last_seq


def _is_id(value: bytes) -> bool:
    return _ID.fullmatch(value.decode("latin-1")) is not None


def _unpack(values: Sequence[_Value]) -> list[Entry] | None:
    match values:
        case [int(first_seq), None, int(last_seq), int(size), int(crc), bytes(body)]:
            row: ChunkRow = first_seq, last_seq, size, crc, body
            try:
                entries = unpack(row)
            except SpoolUnreadable:
                return None
            return entries if len(entries) == last_seq - first_seq + 1 else None
    return None


class _Pages:
    """The pages of a database file and of its WAL, as far as that was committed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Pages:
        try:
            self._file = self._path.open("rb")
        except FileNotFoundError:
            raise SpoolFailed(f"{self._path}: does not exist; name the folder of a spool that was set aside") from None
        header = self._file.read(18)
        written = int.from_bytes(header[16:18], "big") if header.startswith(_MAGIC) else 0
        self._page_bytes = 65536 if written == 1 else written if written >= 512 else _DEFAULT_PAGE_BYTES
        wal = self._path.with_name(f"{self._path.name}-wal")
        self._wal: BinaryIO | None = wal.open("rb") if wal.exists() else None
        self._bytes = sum(file.seek(0, 2) for file in (self._file, self._wal) if file)
        self._versions: defaultdict[int, list[int]] = defaultdict(list)  # page → offsets in the WAL, oldest first
        for number, offset in self._committed_frames():
            self._versions[number].append(offset)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._wal:
            self._wal.close()

    def _committed_frames(self) -> list[tuple[int, int]]:
        """Return (page, offset) of the frames up to the last commit, oldest first."""
        if self._wal is None:
            return []
        self._wal.seek(0)
        salt = self._wal.read(_WAL_HEADER_BYTES)[16:24]
        frames = list(self._all_frames(self._wal))
        salts = [frame.salt for frame in frames]
        if salt not in salts:  # the header is damaged
            salt = next((first for first, second in pairwise(salts) if first == second), salt)
        frames = [frame for frame in frames if frame.salt == salt]  # others are of an earlier generation
        while frames and not frames[-1].is_commit:
            del frames[-1]
        return [(frame.page, frame.offset) for frame in frames]

    def _all_frames(self, wal: BinaryIO) -> Iterator[_WalFrame]:
        step = _FRAME_HEADER_BYTES + self._page_bytes
        for at in range(_WAL_HEADER_BYTES, wal.seek(0, 2) - step + 1, step):
            wal.seek(at)
            page, size_after_commit, salt = struct.unpack(">II8s", wal.read(16))
            if page:  # else it was overwritten
                yield _WalFrame(page, at + _FRAME_HEADER_BYTES, salt, size_after_commit > 0)

    def rows(self) -> Iterator[tuple[_Place, Sequence[_Value]]]:
        """Yield every record on a page that looks like a leaf of a table: the newest version of a page first."""
        for offsets in self._versions.values():
            for offset in reversed(offsets):
                yield from self._rows_of_page(offset, in_wal=True)
        for offset in range(0, self._file.seek(0, 2), self._page_bytes):
            yield from self._rows_of_page(offset, in_wal=False)

    def _rows_of_page(self, offset: int, *, in_wal: bool) -> Iterator[tuple[_Place, Sequence[_Value]]]:
        page = self._read(offset, in_wal=in_wal)
        start = 100 if offset == 0 and not in_wal else 0  # the file's header
        if len(page) < self._page_bytes or page[start] != _LEAF_OF_TABLE:
            return
        count = int.from_bytes(page[start + 3 : start + 5], "big")
        pointers = page[start + 8 : start + 8 + 2 * min(count, self._page_bytes // 2 - 4)]
        for (cell,) in struct.iter_unpack(">H", pointers[: len(pointers) // 2 * 2]):
            values = self._record(page, cell)
            if values:
                yield _Place(offset, in_wal, cell), values

    def row(self, place: _Place) -> Sequence[_Value]:
        """Return the record at a place where one was found."""
        return self._record(self._read(place.offset, in_wal=place.in_wal), place.cell)

    def _read(self, offset: int, *, in_wal: bool) -> bytes:
        file = self._wal if in_wal and self._wal else self._file
        file.seek(offset)
        return file.read(self._page_bytes)

    def _record(self, page: bytes, cell: int) -> Sequence[_Value]:
        """Return the rowid and the columns of a cell; nothing if that is no record of ours."""
        try:
            size, at = _varint(page, cell)
            row_id, at = _varint(page, at)
            return [row_id, *_columns(self._payload(page, at, size))]
        except (IndexError, ValueError):
            return ()

    def _payload(self, page: bytes, at: int, size: int) -> bytes:
        usable = self._page_bytes
        if size > self._bytes:
            raise ValueError("the record is longer than the files")
        smallest = (usable - 12) * 32 // 255 - 23
        local = size
        if size > usable - 35:
            local = smallest + (size - smallest) % (usable - 4)
            local = local if local <= usable - 35 else smallest
        parts = [page[at : at + local]]
        next_page = int.from_bytes(page[at + local : at + local + 4], "big") if size > local else 0
        left = size - local
        while left > 0:
            content = self._overflow_page(next_page)
            next_page = int.from_bytes(content[:4], "big")
            parts.append(content[4 : 4 + left])
            left -= len(parts[-1])
        return b"".join(parts)

    def _overflow_page(self, number: int) -> bytes:
        versions = self._versions.get(number)
        offset = versions[-1] if versions else (number - 1) * self._page_bytes
        content = self._read(offset, in_wal=bool(versions)) if number else b""
        if len(content) <= 4:
            raise ValueError("the chain of pages is broken")
        return content


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at this position, and the position after it."""
    value = 0
    for index in range(at, at + 8):
        value = value << 7 | data[index] & 0x7F
        if data[index] < 0x80:
            return value, index + 1
    return value << 8 | data[at + 8], at + 9


def _columns(payload: bytes) -> Iterator[_Value]:
    """Yield the columns of a record. Raises ValueError, IndexError if it is none."""
    header_size, at = _varint(payload, 0)
    body = header_size
    while at < header_size:
        kind, at = _varint(payload, at)
        if kind in (0, 8, 9):
            yield None if kind == 0 else kind - 8
            continue
        size = _INTEGER_BYTES.get(kind) or (kind - 12) // 2
        value = payload[body : body + size]
        if size < 0 or len(value) < size:
            raise ValueError("the record is longer than its cell")
        yield int.from_bytes(value, "big", signed=True) if kind in _INTEGER_BYTES else value
        body += size
