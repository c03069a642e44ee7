"""A CSV with several readings is counted in each of them, for any division of the bytes into chunks."""

import csv
import io
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncmig.transfers.recount import Recounter

AWKWARD = st.text(st.sampled_from('ab,"\n'), max_size=16)
WITH_RETURNS = st.text(st.sampled_from('ab,"\n\r'), max_size=16)
CUTS = st.lists(st.integers(0, 99), max_size=4)


def counted(content: bytes, cuts: list[int], *, again: bool = False) -> Recounter:
    counter = Recounter()
    counter.accepts_open_quote = again
    positions = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(positions):
        counter.feed(content[start:end])
    return counter


def rows_by_csv(content: str) -> int:
    """Return the rows that the `csv` module reads: a quote is special only at the start of a cell."""
    return max(0, sum(bool(record) for record in csv.reader(io.StringIO(content, newline=""))) - 1)


@given(AWKWARD, CUTS)
def test_the_first_count_is_that_of_the_csv_module(content: str, cuts: list[int]) -> None:
    assert counted(content.encode(), cuts).counts()[0].rows == rows_by_csv(content)


@given(WITH_RETURNS, CUTS)
def test_the_second_count_is_that_of_the_csv_module_if_a_carriage_return_ends_a_line(
    content: str, cuts: list[int]
) -> None:
    assert counted(content.encode(), cuts).counts()[1].rows == rows_by_csv(content)


@given(WITH_RETURNS.map(str.encode))
@example(b"\r\r\n")
@example(b"a\n\r\r\r\n\r")
def test_no_count_depends_on_the_chunks(content: bytes) -> None:
    whole = counted(content, [], again=True).counts()
    assert counted(content, list(range(len(content))), again=True).counts() == whole


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(
    ("text", "possible"),
    [
        (b'Email,Note|a@x,6" pipe|b@x,x|', {2}),
        (b'Email,Note|a@x,6"|b@x,5"|', {1, 2}),
        (b'"Email","Note"|"a@x","6"" pipe"|b@x,x"y"z|', {2}),
        (b'Email,Note|a@x, "two|lines"|', {1, 2}),
        (b'Email,Note|a@x,"two|lines"|', {1}),
        (b'Email,Note|a@x,"a"b"|b@x,1|', {2}),
        (b'Email,Note|a\x00@x,6" pipe|', {1}),
        (b"Email,Note|a@x,1||b@x,2|", {2}),
        (b'6" pipe|1|2|', {2}),
        (b'Email,Note|a@x,""""|""x"y|,3|', {3}),
    ],
)
def test_each_possible_row_count_is_found(text: bytes, possible: set[int], end: bytes, bom: bytes) -> None:
    content = bom + text.replace(b"|", end)
    for cut in range(len(content) + 1):
        assert {count.rows for count in counted(content, [cut]).counts() if not count.cut} == possible


def test_a_lone_carriage_return_may_or_may_not_end_a_line() -> None:
    counts = counted(b"name\r\nada\rlovelace\r\nbob\r\n", []).counts()
    assert {count.rows for count in counts} == {2, 3}


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b'Email,Note\r\na@x,"6 pipe\r\nb@x,x\r\n', 2),
        (b'Email,Note\na@x,"6 pipe\nb@x,x', 2),
        (b'Email,Note\na@x,1\nb@x,"6 pipe', 2),
        (b'Email,Note\na@x,"6 pipe\nand more\n', None),  # a cell with two lines that was cut
        (b'Email,Note\na@x,"6 pipe,\n', None),
    ],
)
def test_an_unclosed_quote_may_be_text_if_the_download_is_repeated(content: bytes, rows: int | None) -> None:
    for cut in range(len(content) + 1):
        assert all(count.cut for count in counted(content, [cut]).counts())
        found = {count.rows for count in counted(content, [cut], again=True).counts() if not count.cut}
        assert found == ({rows} if rows is not None else set())
