"""How entries are encoded in a chunk: what consecutive frames have in common is stored once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ingestor.core.entries import Fact, Frame
from ingestor.spool.chunk_store import pack, unpack
from tests.support.entries import fact, frame

_names = st.sampled_from(["a", "b"])
_frames = st.builds(
    Frame,
    st.integers(0, 1 << 60),
    _names,
    st.sampled_from(["stream", "snapshot", "backfill"]),
    _names,
    _names,
    _names,
    st.text(st.characters(exclude_categories=["Cs"])),
    st.none() | st.integers(1, 9),
)
_facts = st.builds(fact, st.text(max_size=3), at_us=st.integers(0, 1 << 60))


@given(st.lists(_frames | _facts, min_size=1), st.integers(1, 1 << 60))
def test_unpack_returns_the_packed_entries(entries: list[Frame | Fact], first_seq: int) -> None:
    row = pack(first_seq, entries)
    assert row[:2] == (first_seq, first_seq + len(entries) - 1)
    assert unpack(row) == list(enumerate(entries, first_seq))


def test_common_fields_of_consecutive_frames_are_stored_once() -> None:
    long_path = structs.replace(frame([]), path="/" + "p" * 1_000)
    assert pack(1, [long_path] * 100)[2] < 1_000 + 100 * (len(long_path.text) + 20)
