"""Lines: however the bytes come, the same lines, within the limit."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tidemill.formats.lines import LineSplitter, line_ends, shown, text_of


def feed_all(data: bytes, cuts: list[int], limit: int) -> tuple[list[bytes], int]:
    splitter = LineSplitter(limit)
    blocks = []
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, stop in pairwise(edges):
        blocks.append(splitter.feed(data[start:stop]))
        assert splitter.held <= limit + 1
    blocks.append(splitter.finish())
    lines = [line.rstrip(b"\r") for line in b"".join(blocks).split(b"\n")]
    return [line for line in lines if line], len(splitter.oversize)


@given(
    st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"\xef\xbb\xbf", b"long" * 5, b"\r"]), max_size=30),
    st.lists(st.integers(0, 200), max_size=20),
)
def test_any_cut_gives_the_same_lines(parts: list[bytes], cuts: list[int]) -> None:
    """The lines and the count of oversize ones do not depend on where the bytes were cut."""
    data = b"".join(parts)
    whole = feed_all(data, [], 12)
    assert feed_all(data, cuts, 12) == whole
    expected = [line.removesuffix(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    assert whole[0] == [kept for line in expected if len(line) <= 12 and (kept := line.rstrip(b"\r"))]
    assert whole[1] == sum(len(line) > 12 for line in expected)


def test_a_line_without_end_is_not_held_beyond_the_limit() -> None:
    """A sender that never ends its line costs no more memory than the limit, and its neighbours flow."""
    splitter = LineSplitter(limit=100)
    for _ in range(1_000):
        assert splitter.feed(b"x" * 64) == b""
        assert splitter.held <= 100
    assert splitter.feed(b"\nnext\n") == b"next\n"
    assert len(splitter.oversize) == 1
    assert splitter.finish() == b""


def test_giving_up_a_line_rejects_only_that_line() -> None:
    """A line given up is set aside once, and the next line is whole."""
    splitter = LineSplitter()
    splitter.feed(b"half")
    splitter.give_up()
    assert splitter.feed(b"rest\nnext\n") == b"next\n"
    assert [line.head for line in splitter.oversize] == [b"half"]


def test_a_lone_byte_order_mark_prefix_is_kept_at_the_end() -> None:
    """Bytes that could have become a byte order mark are a line when nothing follows."""
    splitter = LineSplitter()
    assert splitter.feed(b"\xef") == b""
    assert splitter.finish() == b"\xef"


def test_what_is_shown_of_a_line_is_bounded() -> None:
    """A rejected line is shown cut, with its length."""
    assert len(shown(b"x" * 1_000_000)) < 2_100
    assert "1000000 bytes" in shown(b"x" * 1_000_000)


@given(
    st.lists(
        st.sampled_from(["a", "\\x", "ü", "€", "😀", "\0", "\r", "\n"]).map(str.encode)
        | st.sampled_from([b"\xff", b"\x80", b"\xe2\x82", b"\xf0\x9f", b"\xed\xa0\x80", b"\xc0\xaf"]),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([1, 3_000]),
)
def test_what_is_no_text_is_shown_byte_by_byte(parts: list[bytes], times: int) -> None:
    """A long line, too, is what Python's own error handler makes of it; and the ends of lines are counted alike."""
    raw = b"".join(parts) * times
    assert text_of(raw) == raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
    assert line_ends(raw) == raw.count(b"\n")
