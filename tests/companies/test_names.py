"""What a server names cannot leave its folder, nor meet another file there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncmig.companies.names import file_names, safe_name


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
    ],
)
def test_names(name: str, safe: str) -> None:
    assert safe_name(name) == safe


@given(st.text())
def test_any_name_is_one_part_of_a_path(name: str) -> None:
    safe = safe_name(name)
    assert safe
    assert len(safe.encode()) <= 121
    assert not set(safe) & set('/\\:*?"<>|\0')
    assert safe not in (".", "..")


@given(st.lists(st.sampled_from(["a", "A", "a/", "a-2", "../a", "b"]), max_size=6))
def test_no_two_files_meet(names: list[str]) -> None:
    made = file_names(names)
    assert len({name.casefold() for name in made}) == len(names)
