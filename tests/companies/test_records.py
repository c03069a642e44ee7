"""Records are counted as a CSV reader counts them, for any division of the bytes into chunks."""

import csv
import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncmig.transfers.csv_records import RecordCounter

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)
AWKWARD = st.text(st.sampled_from('ab,"\n\r'), max_size=8)


def counted(content: bytes, cuts: list[int]) -> RecordCounter:
    counter = RecordCounter()
    positions = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(positions):
        counter.feed(content[start:end])
    return counter


@given(
    st.lists(st.lists(CELLS | AWKWARD, min_size=1, max_size=3), min_size=1, max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 500), max_size=4),
)
def test_rows_written_by_the_csv_module_are_counted(rows: list[list[str]], end: str, cuts: list[int]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    counter = counted(text.getvalue().encode(), cuts)
    assert counter.rows == len(rows) - 1
    assert not counter.cut


@given(
    st.lists(st.lists(AWKWARD.map(lambda cell: cell.replace("\r", "")), max_size=3), min_size=1, max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_rows_are_counted_as_the_csv_module_reads_them(
    rows: list[list[str]], end: str, ended: bool, cuts: list[int]
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows(rows)
    content = text.getvalue() if ended else text.getvalue().removesuffix(end)
    records = list(csv.reader(io.StringIO(content, newline="")))
    counter = counted(content.encode(), cuts)
    assert counter.rows == max(0, sum(bool(record) for record in records) - 1)
    assert counter.blank == sum(not record for record in records)
    assert not (counter.cut and ended)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("text", "rows", "blank"),
    [
        ("name|ada||bob|", 2, 1),
        ("|||name|", 0, 3),
        ("name|ada|bob", 2, 0),
        ('a,b|"x||y",1|,|', 2, 0),
        ('a|"x"|""|', 2, 0),
        ("", 0, 0),
    ],
)
def test_blank_lines_may_or_may_not_count_as_rows(text: str, rows: int, blank: int, end: str) -> None:
    content = text.replace("|", end).encode()
    for cut in range(len(content) + 1):
        counter = counted(content, [cut])
        assert (counter.rows, counter.blank) == (rows, blank)
        assert counter.counts()[0].may_be(rows, rows)
        assert counter.counts()[0].may_be(rows + blank, rows + blank)
        assert not counter.counts()[0].may_be(rows + blank + 1, rows + blank + 1)
        assert rows == 0 or not counter.counts()[0].may_be(rows - 1, rows - 1)


def test_a_lone_carriage_return_is_data_if_lines_end_differently() -> None:
    """The `csv` module does not quote the carriage return, and a server counts one record."""
    assert counted(b"name\r\nada\rlovelace\r\nbob\r\n", []).rows == 2


@pytest.mark.parametrize(
    ("content", "cut"),
    [
        (b'name\n"ada\n', True),
        (b"a,b,c\r\n1,2,3\r\n4,5", True),
        (b"a,b,c\r\n1,2,3\r\n4", True),
        (b'a,b,c\n1,2,3\n4,"5,6,7"', True),
        (b"a,b,c\r\n1,2,3\r\n4,5,", False),  # the cut cannot be detected
        (b"a,b,c\r\n1,2,3\r\n4,5,6\r", False),
        (b"a,b,c\r\n1,2,3\r\n4,5\r\n", False),  # a short record, but complete
        (b'"a\n1",b\n1,"x\ny"', False),
        (b'"a\n1",b\n1,2\n"x\ny"', False),  # the text after the last line end is not a record
        (b"name\nada", False),
        (b"a,b", False),
        (b"a,b\n" + b"1" * 70_000, False),
    ],
)
def test_content_that_ends_inside_a_record_is_cut(content: bytes, cut: bool) -> None:
    for position in range(0, len(content) + 1, 1 + len(content) // 40):
        assert counted(content, [position]).cut == cut


def test_an_oversized_header_is_not_kept() -> None:
    assert not counted(b"a" * 140_000 + b",b\n1", [70_000]).cut
