"""Records are counted as a CSV reader counts them, however the bytes are cut."""

import csv
import io
import itertools

from hypothesis import given
from hypothesis import strategies as st

from asyncmig.companies.records import RecordCounter

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)


def counted(content: bytes, cuts: list[int]) -> RecordCounter:
    counter = RecordCounter()
    places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        counter.feed(content[start:end])
    return counter


@given(
    st.lists(st.lists(CELLS, min_size=1, max_size=3), min_size=1, max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 500), max_size=4),
)
def test_what_a_writer_writes_is_counted(rows: list[list[str]], end: str, cuts: list[int]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    counter = counted(text.getvalue().encode(), cuts)
    assert counter.rows == len(rows) - 1
    assert not counter.cut


def test_blank_lines_may_be_rows_or_nothing() -> None:
    counter = counted(b"name\r\nada\r\n\r\nbob\r\n", [])
    assert counter.may_be(2)
    assert counter.may_be(3)
    assert not counter.may_be(1)
    assert not counter.may_be(4)


def test_a_file_without_a_last_line_end_has_its_last_row() -> None:
    assert counted(b"name\nada\nbob", []).rows == 2


def test_an_empty_file_has_no_rows() -> None:
    assert counted(b"", []).rows == 0


def test_an_open_quote_is_a_cut() -> None:
    assert counted(b'name\n"ada\n', []).cut
