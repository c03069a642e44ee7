"""Rows: their valid values, and equal values in JSON and CSV."""

import csv
import io
import json
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncmig import InvalidInput
from asyncmig.companies.rows import checked_rows, to_csv, to_json


class Stage(Enum):
    WON = "won"


class Wide(float):
    """A subclass of float."""


def in_json(value: object) -> object:
    encoded = to_json(checked_rows([{"x": value}]), most_rows=1, most_bytes=10_000)
    assert encoded is not None
    return json.loads(bytes(encoded))[0]["x"]


def in_csv(value: object) -> str:
    header, record = csv.reader(io.StringIO(to_csv(checked_rows([{"x": value}])).decode(), newline=""))
    assert header == ["x"]
    return record[0]


@pytest.mark.parametrize(
    ("value", "as_json", "as_csv"),
    [
        (None, None, ""),
        ("", "", ""),
        (" text ", " text ", " text "),
        ("=1+1", "=1+1", "=1+1"),
        ('a,"b"\r\nc\rd\ne', 'a,"b"\r\nc\rd\ne', 'a,"b"\r\nc\rd\ne'),
        ("007", "007", "007"),
        (True, True, "true"),
        (False, False, "false"),
        (7, 7, "7"),
        (2**53, 2**53, str(2**53)),
        (2**53 + 1, str(2**53 + 1), str(2**53 + 1)),
        (-(10**30), str(-(10**30)), str(-(10**30))),
        (2.5, 2.5, "2.5"),
        (3.0, 3.0, "3.0"),
        (Wide(0.1), 0.1, "0.1"),
        (Decimal("1.10"), "1.10", "1.10"),
        (Stage.WON, "won", "won"),
        (date(2024, 2, 29), "2024-02-29", "2024-02-29"),
        (time(7, 5), "07:05:00", "07:05:00"),
        (datetime(2024, 2, 29, 7, 5), "2024-02-29T07:05:00", "2024-02-29T07:05:00"),  # noqa: DTZ001 - rows may have naive times
        (datetime(2024, 2, 29, 7, 5, tzinfo=UTC), "2024-02-29T07:05:00Z", "2024-02-29T07:05:00Z"),
        (
            datetime(2024, 2, 29, 7, 5, tzinfo=timezone(timedelta(hours=2))),
            "2024-02-29T07:05:00+02:00",
            "2024-02-29T07:05:00+02:00",
        ),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005", "00000000-0000-0000-0000-000000000005"),
        (["a", 1], ["a", 1], '["a",1]'),
        ({"k": (None, True)}, {"k": [None, True]}, '{"k":[null,true]}'),
    ],
)
def test_a_value_is_the_same_in_json_and_in_csv(value: object, as_json: object, as_csv: str) -> None:
    found = in_json(value)
    assert (type(found), found) == (type(as_json), as_json)
    assert in_csv(value) == as_csv


@pytest.mark.parametrize(
    ("rows", "field", "reason"),
    [
        (["text"], "rows[0]", "mapping"),
        ([{"a": 1}, {}], "rows[1]", "no columns"),
        ([{"": 1}], "rows[0]", "name of a column"),
        ([{" ": 1}], "rows[0]", "name of a column"),
        ([{1: 1}], "rows[0]", "name of a column"),
        ([{None: 1}], "rows[0]", "name of a column"),
        ([{"a": float("nan")}], "rows[0]['a']", "for an empty cell use None"),
        ([{"a": float("-inf")}], "rows[0]['a']", "for an empty cell use None"),
        ([{"a": Decimal("NaN")}], "rows[0]['a']", "for an empty cell use None"),
        ([{"a": b"x"}], "rows[0]['a']", "bytes"),
        ([{"a": {1, 2}}], "rows[0]['a']", "set"),
        ([{"a": object()}], "rows[0]['a']", "object"),
        ([{"a": [object()]}], "rows[0]['a']", "object"),
        ([{"a": {"": 1}}], "rows[0]['a']", "name of a column"),
        ([{"a": "\ud800"}], "rows[0]['a']", "surrogate"),
        ([{"\udfff": "a"}], "rows[0]", "surrogate"),
    ],
)
def test_an_invalid_row_is_named_in_the_error(
    rows: list[Mapping[str, object]], field: str, reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason) as refused:
        checked_rows(rows)
    assert refused.value.field == field


def test_columns_are_in_the_order_of_their_first_appearance() -> None:
    rows = checked_rows([{"b": 1}, OrderedDict(a=2, b=3), {"c": None, "a": "x"}])
    assert to_csv(rows).decode() == '"b","a","c"\r\n"1","",""\r\n"3","2",""\r\n"","x",""\r\n'


def test_rows_are_json_only_within_both_limits() -> None:
    rows = checked_rows([{"a": "x" * 10}] * 3)
    size = len(json.dumps(rows, separators=(",", ":")))
    assert to_json(rows, most_rows=3, most_bytes=size) is not None
    assert to_json(rows, most_rows=2, most_bytes=size) is None
    assert to_json(rows, most_rows=3, most_bytes=size - 1) is None


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=50)
@given(
    st.lists(st.dictionaries(TEXT.filter(str.strip), TEXT | st.none(), min_size=1, max_size=4), min_size=1)
)
def test_any_text_survives_a_csv_round_trip(rows: list[dict[str, str | None]]) -> None:
    text = to_csv(checked_rows(rows)).decode()
    header, *records = csv.reader(io.StringIO(text, newline=""))
    assert len(records) == len(rows)
    for row, record in zip(rows, records, strict=True):
        assert dict(zip(header, record, strict=True)) == {name: row.get(name) or "" for name in header}
