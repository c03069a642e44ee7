"""Control characters in texts of the server do not reach the terminal."""

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from asyncmig.cli.output import ConsoleHandler, clean, say


@given(st.text())
def test_clean_returns_one_printable_line(text: str) -> None:
    cleaned = clean(text)
    assert len(cleaned) <= 300
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in cleaned)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "[31mred [0m"),
        ("two\r\nlines", "two lines"),
        ("a\u202eb", "a b"),
        ("[bold]", "[bold]"),
    ],
)
def test_control_characters_are_replaced_and_markup_is_printed(text: str, shown: str) -> None:
    out = io.StringIO()
    say(Console(file=out, force_terminal=False, width=40), clean(text))
    assert out.getvalue() == f"{shown}\n"


def test_say_does_not_wrap_a_line() -> None:
    out = io.StringIO()
    say(Console(file=out, width=20), "word " * 20)
    assert out.getvalue().count("\n") == 1


def test_a_log_record_of_the_library_is_one_line_without_a_traceback() -> None:
    out = io.StringIO()
    log = logging.getLogger("asyncmig.test_terminal")
    handler = ConsoleHandler(Console(file=out, width=200))
    log.addHandler(handler)
    try:
        log.exception("broke off", exc_info=ValueError("bad\x1b[2J"))
    finally:
        log.removeHandler(handler)
    assert out.getvalue() == "error: broke off (ValueError: bad [2J)\n"
