"""The `Retry-After` header of a reply, and the error of a reply that cannot be decoded."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from asyncmig._io.reply import retry_after, unreadable


def date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:29:00 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 60.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT", "Date": "Wed, 21 Oct 2015 07:29:00 GMT"}, 0.0),
        ({"Retry-After": date(-86_400)}, None),  # the clocks differ, so it is ignored
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_without_a_date_header_is_compared_with_the_wall_clock() -> None:
    asked = retry_after({"Retry-After": date(3600.0)}, most=7200.0)
    assert asked == pytest.approx(3600.0, abs=120.0)


def test_the_error_of_an_undecodable_reply_hides_its_strings() -> None:
    body = b'{"files": [{"name": "a \\"b", "token" : "tok-secret", "size": 3, "note": "cut off here'
    text = str(unreadable("POST", "/files", 201, body, ValueError("malformed")))
    assert '{"files": [{"name": "***", "token" : "***", "size": 3, "note": "***"' in text
    assert "<html>" in str(unreadable("POST", "/files", 200, b"<html>", ValueError("malformed")))
