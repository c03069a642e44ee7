"""Lists of undocumented shape: each customary form of pagination is read, and none is followed endlessly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncmig.companies.pages import read_page

RUN = {"run_id": "r"}


@pytest.mark.parametrize(
    ("reply", "following"),
    [
        ({"imports": [RUN]}, None),
        ({"imports": [RUN], "next_cursor": "abc"}, {"cursor": "abc"}),
        ({"imports": [RUN], "nextCursor": "abc"}, {"cursor": "abc"}),
        ({"imports": [RUN], "cursor": "abc"}, {"cursor": "abc"}),
        ({"imports": [RUN], "cursor": "here", "next_cursor": None}, None),
        ({"imports": [RUN], "next": "a/b+c=="}, {"cursor": "a/b+c=="}),
        ({"imports": [RUN], "next": 2}, {"page": "2"}),
        ({"imports": [RUN], "next": "2"}, {"page": "2"}),
        ({"imports": [RUN], "next": "https://elsewhere.invalid/x?page=2&size=5"}, {"page": "2", "size": "5"}),
        ({"imports": [RUN], "next": "/companies/c/imports?after=9"}, {"after": "9"}),
        ({"imports": [RUN], "links": {"next": {"href": "?cursor=9"}}}, {"cursor": "9"}),
        ({"imports": [RUN], "links": {"next": None}}, None),
        ({"imports": [RUN], "pagination": {"next_page": 3}}, {"page": "3"}),
        ({"imports": [RUN], "meta": {"page": "1", "total_pages": "2"}}, {"page": "2"}),
        ({"imports": [RUN], "page": 2, "pages": 2}, None),
        ({"imports": [RUN], "offset": 0, "limit": 1, "total": 2}, {"offset": "1", "limit": "1"}),
        ({"imports": [RUN], "offset": 1, "limit": 1, "total": 2}, None),
        ({"imports": [RUN], "page_info": {"hasNextPage": True, "endCursor": "z"}}, {"cursor": "z"}),
        ({"imports": [RUN], "page_info": {"hasNextPage": False, "endCursor": "z"}}, None),
        ({"imports": [RUN], "has_more": False, "next_cursor": "abc"}, None),
        ({"imports": [RUN], "next_page_token": "t"}, {"page_token": "t"}),
        ({"imports": [RUN], "next": {"odd": 1}, "next_cursor": [1], "meta": 5}, None),
        ({"imports": [RUN], "next": "x" * 100_000}, None),
        ({"imports": [RUN], "next": "http://[broken?x=1"}, None),
        ([RUN], None),
        ({"runs": [RUN]}, None),
        ({"data": [RUN], "errors": []}, None),
        ({"whatever": [RUN]}, None),
    ],
)
def test_the_next_page_is_read_from_the_reply(reply: object, following: dict[str, str] | None) -> None:
    page = read_page(reply)
    assert page.items == (RUN,)
    assert page.next == following
    assert not page.cut


@pytest.mark.parametrize("reply", [[RUN], {"imports": [RUN], "links": {"self": "x"}}])
def test_the_next_page_is_read_from_the_link_header(reply: object) -> None:
    link = '<https://elsewhere.invalid/x?cursor=0>; rel="first", </x?cursor=2&limit=1>; rel="next"'
    assert read_page(reply, link).next == {"cursor": "2", "limit": "1"}
    assert read_page(reply, link.replace("next", "prev")).next is None
    assert read_page(reply, '</x>; rel="next"').next is None


def test_a_list_with_more_items_but_no_next_page_is_marked_as_cut() -> None:
    assert read_page({"imports": [RUN], "meta": {"total": "7"}}).total == 7
    assert read_page({"imports": [RUN], "has_more": True}).cut
    assert not read_page({"imports": [RUN], "has_more": True, "next_cursor": "x"}).cut


@pytest.mark.parametrize(
    "reply", [{}, [], None, "text", 5, {"imports": None}, {"imports": {}}, {"a": [], "b": []}]
)
def test_a_reply_without_a_list_has_no_items(reply: object) -> None:
    assert read_page(reply).items == ()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["imports", "next", "next_cursor", "meta", "links", "page", "total_pages", "has_more"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=10,
    )
)
def test_any_json_is_read_as_a_page(reply: object) -> None:
    page = read_page(reply)
    assert page.next is None or all(isinstance(text, str) for text in page.next.values())
