"""A server's text cannot steer the terminal."""

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from asyncmig.cli.output import ConsoleHandler, clean, say


@given(st.text())
def test_a_cleaned_text_is_one_printable_line(text: str) -> None:
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
def test_what_would_steer_it_is_shown_instead(text: str, shown: str) -> None:
    out = io.StringIO()
    say(Console(file=out, force_terminal=False, width=40), clean(text))
    assert out.getvalue() == f"{shown}\n"


def test_a_line_is_never_wrapped() -> None:
    out = io.StringIO()
    say(Console(file=out, width=20), "word " * 20)
    assert out.getvalue().count("\n") == 1


def test_a_warning_of_the_library_is_one_line_without_a_traceback() -> None:
    out = io.StringIO()
    log = logging.getLogger("asyncmig.test_terminal")
    handler = ConsoleHandler(Console(file=out, width=200))
    log.addHandler(handler)
    try:
        log.exception("broke off", exc_info=ValueError("bad\x1b[2J"))
    finally:
        log.removeHandler(handler)
    assert out.getvalue() == "error: broke off (ValueError: bad [2J)\n"
