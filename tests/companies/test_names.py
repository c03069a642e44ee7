"""A file name from the server cannot lead out of its folder or collide with another name."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncmig.customers.files import file_names, safe_name


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("Contacts", "Contacts"),
        ("../x", "_x"),
        ("/etc/passwd", "_etc_passwd"),
        ("CON", "_CON"),
        ("nul.csv", "_nul.csv"),
        ("", "_"),
        ("..", "_"),
        ("a\x1b[31mb", "a_[31mb"),
        ("Kunden: 2024?", "Kunden_ 2024_"),
        ("顧客", "顧客"),
        ("con .txt", "_con .txt"),
        ("CONOUT$", "_CONOUT$"),
        ("a. .", "a"),
        ("e\u0301", "é"),
        ("é" * 100, "é" * 60),  # 120 bytes
        ("gpj\u202e.exe", "gpj_.exe"),
        ("a\u200bb\ufeff", "a_b_"),
        ("\ud800x", "_x"),
    ],
)
def test_a_name_is_made_safe(name: str, safe: str) -> None:
    assert safe_name(name) == safe


@given(st.text())
def test_any_name_is_one_part_of_a_path(name: str) -> None:
    safe = safe_name(name)
    assert safe
    assert len(safe.encode()) <= 121
    assert not set(safe) & set('/\\:*?"<>|\0')
    assert safe not in (".", "..")


ALIKE = [
    "a",
    "A",
    "a/",
    "a-2",
    "../a",
    "b",
    "é",
    "e\u0301",
    "É",
    "ß",
    "SS",
    "ss",
    "K",
    "\u212a",
    "x" * 130,
    "X" * 140,
]


def normalized(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@given(st.lists(st.sampled_from(ALIKE), max_size=6))
def test_no_two_file_names_collide(names: list[str]) -> None:
    made = file_names(names)
    assert len({normalized(name) for name in made}) == len(names)


@given(
    st.lists(st.sampled_from(ALIKE), unique=True).flatmap(
        lambda names: st.tuples(st.just(names), st.permutations(names))
    )
)
def test_file_names_do_not_depend_on_the_order_of_the_sheets(orders: tuple[list[str], list[str]]) -> None:
    first, second = (dict(zip(order, file_names(order), strict=True)) for order in orders)
    assert first == second
