"""Webhooks: signatures, payloads, and the reassembly of exports from batches in any order."""

import pickle
from base64 import b64encode
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from svix.webhooks import Webhook as Svix
from svix.webhooks import WebhookVerificationError

from asyncmig import InvalidInput, WebhookRefused
from asyncmig.webhooks import (
    Added,
    Batch,
    Export,
    OtherEvent,
    Reassembler,
    Row,
    SheetRows,
    decode,
    receive,
    verify,
)

SECRET = "whsec_" + b64encode(bytes(range(24))).decode()
OTHER = "whsec_" + b64encode(b"another key").decode()
NOW = 1_750_000_000.0
BODY = b'{"version": "1.0"}'


def signed(body: bytes = BODY, *, at: float = NOW, secret: str = SECRET, **headers: str) -> dict[str, str]:
    """Return headers as the `svix` package creates them."""
    signature = Svix(secret).sign("msg_1", datetime.fromtimestamp(int(at), UTC), body.decode())
    made = {"svix-id": "msg_1", "svix-timestamp": str(int(at)), "svix-signature": signature}
    return made | {name.replace("_", "-"): value for name, value in headers.items()}


# Signatures


@settings(max_examples=30)
@given(
    body=st.text().map(str.encode),
    key=st.binary(min_size=1, max_size=64),
    at=st.integers(0, 4_000_000_000),
    off=st.integers(-300, 300),
)
def test_a_signature_by_svix_is_accepted(body: bytes, key: bytes, at: int, off: int) -> None:
    secret = "whsec_" + b64encode(key).decode()
    assert verify(body, signed(body, at=at, secret=secret), secret, now=at + off) == "msg_1"


@pytest.mark.parametrize("valid", [True, False])
def test_svix_accepts_and_refuses_the_same_signatures(valid: bool) -> None:
    now = datetime.now(UTC).timestamp()  # svix uses the system clock
    headers = signed(at=now)
    body = BODY if valid else BODY + b" "
    if valid:
        Svix(SECRET).verify(body, headers)
        verify(body, headers, SECRET, now=now)
    else:
        with pytest.raises(WebhookVerificationError):
            Svix(SECRET).verify(body, headers)
        with pytest.raises(WebhookRefused):
            verify(body, headers, SECRET, now=now)


@pytest.mark.parametrize("off", [-300.0, 300.0])
def test_a_timestamp_may_differ_by_five_minutes(off: float) -> None:
    verify(BODY, signed(), SECRET, now=NOW + off)


@pytest.mark.parametrize(("off", "word"), [(-301.0, "ahead"), (300.5, "ago"), (1e9, "ago")])
def test_a_timestamp_that_differs_by_more_than_five_minutes_is_refused(off: float, word: str) -> None:
    with pytest.raises(WebhookRefused, match=rf"svix-timestamp .*{word}"):
        verify(BODY, signed(), SECRET, now=NOW + off)


@pytest.mark.parametrize("secrets", [SECRET, [OTHER, SECRET], (SECRET, OTHER), iter([SECRET])])
def test_one_of_several_secrets_must_match(secrets: str | Iterable[str]) -> None:
    verify(BODY, signed(), secrets, now=NOW)


@pytest.mark.parametrize("before", ["v1,AAAA ", "v1a,x v2,y ", "nonsense v1, , v1 "])
def test_one_of_several_signatures_must_match(before: str) -> None:
    headers = signed()
    headers["svix-signature"] = before + headers["svix-signature"] + " v1,zzz"
    verify(BODY, headers, SECRET, now=NOW)


def test_header_names_are_case_insensitive() -> None:
    verify(BODY, {name.title(): value for name, value in signed().items()}, SECRET, now=NOW)


@pytest.mark.parametrize(
    "wrong",
    [
        {"svix_signature": "v1," + b64encode(bytes(32)).decode()},
        {"svix_signature": "v1,Zoë"},
        {"svix_signature": "v1,\udc80"},
        {"svix_signature": "v1"},
        {"svix_signature": "v2,abc"},
        {"svix_signature": ""},
        {"svix_timestamp": "soon"},
        {"svix_timestamp": "-1750000000"},
        {"svix_timestamp": "1750000000.0"},
        {"svix_timestamp": "9" * 5000},
        {"svix_timestamp": "1_750_000_000"},
        {"svix_id": "msg_2"},
        {"svix_id": ""},
        {"svix_id": "\udc80"},
    ],
    ids=repr,
)
def test_wrong_headers_are_refused_by_an_error_without_the_secret(wrong: Mapping[str, str]) -> None:
    with pytest.raises(WebhookRefused, match=r"^svix-(id|timestamp|signature) ") as caught:
        verify(BODY, signed(**wrong), SECRET, now=NOW)
    assert SECRET.removeprefix("whsec_") not in repr(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_header_with_two_values_is_refused() -> None:
    for name, value in signed().items():
        with pytest.raises(WebhookRefused, match=f"^{name} occurs more than once"):
            verify(BODY, {**signed(), name.upper(): value + "0"}, SECRET, now=NOW)
        verify(BODY, {**signed(), name.upper(): value}, SECRET, now=NOW)


def test_a_timestamp_with_other_digits_than_ascii_is_refused() -> None:
    with pytest.raises(WebhookRefused, match=r"^svix-timestamp is not a number"):
        verify(BODY, signed(svix_timestamp="١٧٥٠٠٠٠٠٠٠"), SECRET, now=NOW)


@pytest.mark.parametrize("name", ["svix-id", "svix-timestamp", "svix-signature"])
def test_the_error_of_a_missing_header_names_it(name: str) -> None:
    headers = signed()
    del headers[name]
    with pytest.raises(WebhookRefused, match=f"^{name} is missing"):
        verify(BODY, headers, SECRET, now=NOW)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_***", "bm90IHByZWZpeGVk", "whsec_Zoë", "whsec_a"])
def test_an_invalid_secret_is_refused_by_an_error_without_the_secret(secret: str) -> None:
    with pytest.raises(InvalidInput, match=r"secret='\*\*\*'") as caught:
        verify(BODY, signed(), secret, now=NOW)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_an_empty_list_of_secrets_and_a_decoded_body_are_refused() -> None:
    with pytest.raises(InvalidInput, match="secrets"):
        verify(BODY, signed(), [], now=NOW)
    with pytest.raises(InvalidInput, match="raw bytes"):
        verify(BODY.decode(), signed(), SECRET, now=NOW)  # type: ignore[arg-type]


# Payloads

FLAT = {
    "event": "workbook.production.export",
    "version": "1.0",
    "workbook_id": "wb",
    "external_id": "acme-001",
    "batch": {"id": "x", "index": 1, "total": 2, "size": 2, "timestamp": "2026-01-01T00:00:00Z"},
    "sheets": [
        {
            "id": "s1",
            "name": "Contacts",
            "row_count": 2,
            "start_row_index": 0,
            "end_row_index": 1,
            "data": [
                {"Email": "a@x.org", "errors": [], "row_index": 0},
                {"Email": "?", "errors": [{"column": "Email"}], "row_index": 1},
            ],
        }
    ],
}
NESTED = {
    "event": "workbook.preview.export",
    "version": "2.0",
    "workbook_id": "wb",
    "external_id": None,
    "company_name": "Acme",
    "export_mode": "nested",
    "root_sheets": ["Contacts"],
    "batch": {"id": "y", "index": 0, "total": 1, "size": 1, "timestamp": "2026-01-01T00:00:00Z"},
    "data": {
        "Contacts": [
            {
                "Email": "a@x.org",
                "errors": [],
                "row_index": 0,
                "children": {
                    "Deals": [{"Title": "Big", "errors": ["too big"], "row_index": 3, "children": {}}]
                },
            }
        ]
    },
}


def encoded(payload: object) -> bytes:
    return msgspec.json.encode(payload)


def batch(payload: object) -> Batch:
    event = decode(encoded(payload), message_id="msg_1")
    assert isinstance(event, Batch)
    return event


def test_a_flat_batch_has_all_documented_fields() -> None:
    got = batch(FLAT)
    assert got == Batch(
        message_id="msg_1",
        export_id="x",
        index=1,
        total=2,
        size=2,
        timestamp="2026-01-01T00:00:00Z",
        event="workbook.production.export",
        version="1.0",
        workbook_id="wb",
        external_id="acme-001",
        sheets=(
            SheetRows(
                id="s1",
                name="Contacts",
                row_count=2,
                start_row_index=0,
                end_row_index=1,
                rows=(
                    Row(values={"Email": "a@x.org"}, index=0),
                    Row(values={"Email": "?"}, errors=({"column": "Email"},), index=1),
                ),
            ),
        ),
        body=encoded(FLAT),
    )
    assert "a@x.org" not in repr(got)
    assert msgspec.json.decode(msgspec.json.encode(got), type=Batch) == got


@pytest.mark.parametrize(
    ("was", "written"),
    [
        (b'"size":2', b'"size":NaN'),
        (b'"size":2', b'"size":1e999'),
        (b'"row_index":1', b'"row_index":1,"Score":-Infinity'),
        (b'"workbook_id"', b'"novelty":' + b"[" * 5000 + b"]" * 5000 + b',"workbook_id"'),
        (b'{"event"', b'\xef\xbb\xbf{"event"'),
        (b'"Contacts"', b'"Con\ttacts"'),
    ],
)
def test_a_batch_that_is_not_strict_json_is_read(was: bytes, written: bytes) -> None:
    body = encoded(FLAT)
    assert was in body
    got = decode(body.replace(was, written, 1) + b"\n", message_id="msg_1")
    assert isinstance(got, Batch)
    assert (got.export_id, got.index, got.total) == ("x", 1, 2)
    assert [row.values["Email"] for row in got.sheets[0].rows] == ["a@x.org", "?"]


@pytest.mark.parametrize("field", ["batch", "sheets", "data"])
def test_rows_that_are_nested_too_deeply_are_refused_and_not_omitted(field: str) -> None:
    body = encoded({**FLAT, field: "..."}).replace(b'"..."', b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(WebhookRefused, match=rf"too deeply nested in \$\.{field}"):
        decode(body)


def test_a_nested_batch_has_all_documented_fields() -> None:
    got = batch(NESTED)
    deal = Row(values={"Title": "Big"}, errors=("too big",), index=3)
    contact = Row(values={"Email": "a@x.org"}, index=0, children={"Deals": (deal,)})
    assert got.sheets == (SheetRows(name="Contacts", rows=(contact,)),)
    assert (got.nested, got.company_name, got.external_id) == (True, "Acme", None)
    assert (got.root_sheets, got.event) == (("Contacts",), "workbook.preview.export")
    assert msgspec.json.decode(msgspec.json.encode(got), type=Batch) == got


def test_a_verified_body_is_decoded() -> None:
    event = receive(encoded(FLAT), signed(encoded(FLAT)), SECRET, now=NOW)
    assert event == batch(FLAT)


@pytest.mark.parametrize(
    "later",
    [
        {"nobody_knows": 1},
        {"version": "1.7"},
        {"version": None},
        {"version": 1.0},
        {"event": "workbook.staging.export"},
        {"batch": {"id": "x", "index": "1", "total": "2", "new": []}},
        {"batch": {"id": "x", "index": 1, "total": 2, "size": {"rows": 2}, "timestamp": 17}},
        {"external_id": None},
        {"external_id": 7},
        {"workbook_id": None},
    ],
    ids=repr,
)
def test_a_batch_with_fields_of_a_later_version_is_decoded(later: dict[str, object]) -> None:
    got = batch({**FLAT, **later})
    assert (got.export_id, got.index, got.total) == ("x", 1, 2)
    assert got.sheets == batch(FLAT).sheets


@pytest.mark.parametrize(
    ("row", "meant"),
    [
        ({"A": 1, "row_index": "7"}, Row(values={"A": 1}, index=7)),
        ({"A": None, "errors": None, "row_index": None}, Row(values={"A": None})),
        ({"errors": "a column", "row_index": "too"}, Row(values={"errors": "a column", "row_index": "too"})),
        ({"children": "a column"}, Row(values={"children": "a column"})),
        ({}, Row(values={})),
    ],
    ids=repr,
)
def test_cells_are_distinguished_from_the_metadata_of_a_row(row: dict[str, object], meant: Row) -> None:
    (sheet,) = batch({**FLAT, "sheets": [{"data": [row]}]}).sheets
    assert sheet.rows == (meant,)


@pytest.mark.parametrize("empty", [{"sheets": None}, {"sheets": []}, {"sheets": [{"id": "s", "data": None}]}])
def test_a_batch_without_rows_is_decoded(empty: dict[str, object]) -> None:
    assert not any(sheet.rows for sheet in batch({**FLAT, **empty}).sheets)


@pytest.mark.parametrize(
    "payload",
    [
        {"type": "company.created", "company": {"id": 1}},
        {"event": "x", "batch": None},
        {"version": "9.0", "batch": {"id": "x", "index": 0, "total": 1}, "tables": []},
    ],
    ids=repr,
)
def test_an_unknown_event_is_decoded_as_another_event(payload: dict[str, object]) -> None:
    event = decode(encoded(payload), message_id="m")
    assert isinstance(event, OtherEvent)
    assert event.payload == payload
    assert event.event == payload.get("event", payload.get("type"))


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b"", "body"),
        (b"<html>", "body"),
        (b"\xff", "body"),
        (b"[]", "object"),
        (encoded(FLAT)[:-9], "body"),
        (b'{"sheets": ' + b"[" * 100_000, "body"),
        (
            b'{"batch": {"id": "x", "index": 0, "total": 1}, "data": {"S": %s'
            % (b'[{"children":{"S":' * 300),
            "body",
        ),
        (encoded({**FLAT, "batch": "x"}), r"\$\.batch"),
        (encoded({**FLAT, "batch": {"id": "x", "index": 0}}), r"\$\.batch\.total"),
        (encoded({**FLAT, "batch": {"id": "x", "index": 0, "total": None}}), r"\$\.batch\.total"),
        (encoded({**FLAT, "batch": {"id": "", "index": 0, "total": 1}}), r"\$\.batch\.id"),
        (encoded({**FLAT, "batch": {"id": "x", "index": -1, "total": 1}}), r"\$\.batch\.index"),
        (encoded({**FLAT, "batch": {"id": "x", "index": 3, "total": 2}}), r"\$\.batch\.index"),
        (encoded({**FLAT, "batch": {"id": "x", "index": 0, "total": 0}}), r"\$\.batch\.total"),
        (encoded({**FLAT, "sheets": {"a": 1}}), r"\$\.sheets"),
        (encoded({**FLAT, "sheets": [{"data": {"a": 1}}]}), r"\$\.sheets\[0\]\.data"),
        (encoded({**FLAT, "sheets": [{"data": [{}, 5]}]}), r"\$\.sheets\[0\]\.data\[1\]"),
        (encoded({**NESTED, "data": {"S": [{"children": [1]}]}}), r"\$\.data\.S\[0\]\.children"),
    ],
    ids=lambda value: str(value[:40]),
)
def test_the_error_of_an_invalid_body_names_the_invalid_field(body: bytes, names: str) -> None:
    with pytest.raises(WebhookRefused, match=names):
        decode(body)


@given(st.integers(1, 900))
@settings(max_examples=20)
def test_deeply_nested_rows_are_decoded_or_refused(depth: int) -> None:
    rows = b'{"S": [{"row_index": 1, "children": ' * depth + b"{}" + b"}]}" * depth
    body = b'{"version": "2.0", "batch": {"id": "x", "index": 0, "total": 1}, "data": %s}' % rows
    try:
        assert isinstance(decode(body), Batch)
    except WebhookRefused:
        assert depth > 50


# Reassembly


def part(
    export: str = "x", index: int = 0, total: int = 3, rows: object = (), *, message: str = "", **more: object
) -> Batch:
    """Return a flat batch."""
    payload = {
        **FLAT,
        "batch": {"id": export, "index": index, "total": total},
        "sheets": [{"id": "s1", "name": "Contacts", "data": rows or [{"Row": f"{export}{index}"}]}],
        **more,
    }
    event = decode(encoded(payload), message_id=message or f"msg-{export}-{index}")
    assert isinstance(event, Batch)
    return event


def cells(export: Export | None) -> list[object]:
    assert export is not None
    return [row.values["Row"] for sheet in export.sheets() for row in sheet.rows]


@given(st.data())
def test_the_order_and_repetition_of_batches_do_not_change_the_exports(data: st.DataObject) -> None:
    totals = data.draw(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 5), min_size=1))
    bases = {export: data.draw(st.integers(0, 1)) for export in totals}
    sent = [part(e, bases[e] + n, total) for e, total in totals.items() for n in range(total)]
    again = data.draw(st.lists(st.sampled_from(sent)))
    mixed = data.draw(st.permutations(sent + again))
    reassembler = Reassembler()
    added = [reassembler.add(each) for each in mixed]
    whole = {each.export.id: cells(each.export) for each in added if each.export}
    assert whole == {
        export: [f"{export}{bases[export] + n}" for n in range(total)] for export, total in totals.items()
    }
    assert sum(each.duplicate for each in added) == len(again)
    assert not any(each.given_up for each in added)
    assert (reassembler.held_bytes, reassembler.incomplete()) == (0, ())


@given(st.data())
def test_memory_is_bounded_and_discarded_batches_are_reported(data: st.DataObject) -> None:
    sent = [part(export, n, 3) for export in "abcdefg" for n in range(3)]
    size = len(sent[0].body) + 512
    reassembler = Reassembler(max_bytes=data.draw(st.integers(2, 8)) * size + 10, remembered=3)
    store = {batch.message_id: batch for batch in sent}
    whole: dict[str, list[object]] = {}
    lost: set[str] = set()

    def add(batch: Batch) -> None:
        added = reassembler.add(batch)
        assert reassembler.held_bytes <= reassembler._max_bytes
        assert reassembler.held_bytes == sum(each.held_bytes for each in reassembler.incomplete())
        lost.update(message for each in added.given_up for message in each.message_ids)
        if added.export:
            whole[added.export.id] = cells(added.export)

    for each in data.draw(st.permutations(sent)):
        add(each)
    for message in sorted(lost):  # add the discarded batches again, export by export
        if store[message].export_id not in whole:
            add(store[message])
    for each in sent:
        if each.export_id not in whole:
            add(each)
    assert whole == {export: [f"{export}{n}" for n in range(3)] for export in "abcdefg"}


def test_the_least_recently_updated_export_is_discarded_and_can_be_added_again() -> None:
    size = len(part().body) + 512
    reassembler = Reassembler(max_bytes=3 * size)
    for each in (part("a", 0), part("b", 0), part("a", 1)):
        assert reassembler.add(each) == Added()
    (gone,) = reassembler.add(part("c", 0)).given_up
    assert (gone.export_id, gone.total, gone.indexes) == ("b", 3, (0,))
    assert (gone.message_ids, gone.held_bytes) == (("msg-b-0",), size)
    assert [each.export_id for each in reassembler.incomplete()] == ["a", "c"]
    again = reassembler.add(part("b", 0))
    assert not again.duplicate
    assert [each.export_id for each in again.given_up] == ["a"]


def test_the_last_batch_of_an_export_discards_no_other_export() -> None:
    reassembler = Reassembler(max_bytes=2 * (len(part().body) + 512))
    reassembler.add(part("a", 0, 2))
    reassembler.add(part("b", 0, 2))
    added = reassembler.add(part("a", 1, 2))
    assert cells(added.export) == ["a0", "a1"]
    assert not added.given_up


def test_an_export_that_is_too_large_is_refused_and_discards_no_other_export() -> None:
    reassembler = Reassembler(max_bytes=3 * (len(part().body) + 512))
    reassembler.add(part("b", 0))
    for index in (0, 1):
        reassembler.add(part("a", index, 9))
    with pytest.raises(WebhookRefused, match="max_bytes"):
        reassembler.add(part("a", 2, 9, [{"Row": "long" * 999}]))
    assert [each.export_id for each in reassembler.incomplete()] == ["b", "a"]


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (part("a", 0), part("a", 1, 4, message="m"), r"\$\.batch\.total"),
        (part("a", 0), part("a", 1, workbook_id="other"), r"\$\.workbook_id"),
        (part("a", 0), part("a", 1, sheets=None, version="2.0"), r"\$\.version"),
        (part("a", 0), part("a", 0, 3, [{"Row": "other"}]), "other content"),
        (part("a", 0), part("a", 0, 3, [{"Row": "other"}], message="m"), "other content"),
        (part("a", 0), part("a", 3), "count from 0"),
        (part("a", 3), part("a", 0), "count from 1"),
    ],
)
def test_a_batch_that_contradicts_the_others_is_refused_and_changes_nothing(
    first: Batch, second: Batch, names: str
) -> None:
    reassembler = Reassembler()
    reassembler.add(first)
    before = reassembler.incomplete()
    with pytest.raises(WebhookRefused, match=names):
        reassembler.add(second)
    assert reassembler.incomplete() == before


def test_a_batch_that_contradicts_a_complete_export_is_refused() -> None:
    reassembler = Reassembler()
    assert reassembler.add(part("a", 1, 1)).export is not None
    assert reassembler.add(part("a", 1, 1, message="m")).duplicate
    for odd in (part("a", 0, 1), part("a", 1, 2)):
        with pytest.raises(WebhookRefused, match="the export was complete with 1"):
            reassembler.add(odd)


def test_a_batch_with_the_same_rows_and_another_body_is_a_duplicate() -> None:
    reassembler = Reassembler()
    reassembler.add(part("a", 0))
    assert reassembler.add(part("a", 0, later_field=True, message="m")).duplicate


def test_a_missing_workbook_id_is_no_contradiction() -> None:
    reassembler = Reassembler()
    reassembler.add(part("a", 0, 2))
    assert reassembler.add(part("a", 1, 2, workbook_id=None)).export is not None


def test_a_repetition_of_another_event_is_a_duplicate() -> None:
    reassembler = Reassembler(remembered=1)
    event, other = decode(b"{}", message_id="m"), decode(b"{}", message_id="n")
    added = [reassembler.add(each) for each in (event, event, other, event)]
    assert [each.duplicate for each in added] == [False, True, False, False]
    assert not any(reassembler.add(decode(b"{}")).duplicate for _ in range(2))


def test_a_batch_of_a_forgotten_export_is_a_duplicate_if_its_message_is_remembered() -> None:
    reassembler = Reassembler(remembered=2)
    reassembler.add(part("a", 0, 1))
    reassembler.add(part("b", 0, 9))
    reassembler.add(part("c", 0, 1))
    assert reassembler.add(part("c", 0, 1)).duplicate
    assert reassembler.add(part("b", 0, 9)).duplicate
    assert reassembler.add(part("a", 0, 1)).duplicate
    assert not reassembler.add(part("d", 0, 1)).duplicate
    assert not reassembler.add(part("a", 0, 1)).duplicate


def test_rows_are_joined_by_sheet_in_the_order_of_the_batches() -> None:
    def sheets(*parts: tuple[str, int]) -> list[dict[str, object]]:
        return [
            {
                "id": f"id-{name}",
                "name": "Same",
                "start_row_index": n,
                "end_row_index": n,
                "data": [{"Row": f"{name}{n}"}],
            }
            for name, n in parts
        ]

    reassembler = Reassembler()
    reassembler.add(part("a", 1, 2, sheets=sheets(("q", 1), ("p", 9))))
    export = reassembler.add(part("a", 0, 2, sheets=sheets(("p", 0)))).export
    assert export is not None
    assert [(s.id, s.row_count, s.start_row_index, s.end_row_index) for s in export.sheets()] == [
        ("id-p", 2, 0, 9),
        ("id-q", 1, 1, 1),
    ]
    assert cells(export) == ["p0", "p9", "q1"]
    assert [batch.index for batch in export.batches()] == [0, 1]
    assert export.message_ids == ("msg-a-0", "msg-a-1")
    assert (export.external_id, export.workbook_id) == ("acme-001", "wb")
    assert "p0" not in repr(export)


def test_nested_rows_are_joined_by_sheet() -> None:
    reassembler, frame = Reassembler(), {**NESTED, "batch": {"id": "y", "index": 1, "total": 2}}
    reassembler.add(batch({**frame, "data": {"Contacts": [{"Row": 2}], "Deals": [{"Row": 3}]}}))
    export = reassembler.add(batch({**NESTED, "batch": {"id": "y", "index": 0, "total": 2}})).export
    assert export is not None
    assert (export.nested, export.company_name, export.event) == (True, "Acme", "workbook.preview.export")
    contacts, deals = export.sheets()
    assert [len(row.children) for row in contacts.rows] == [1, 0]
    assert deals.rows == (Row(values={"Row": 3}),)


def test_a_single_batch_with_index_0_or_1_is_a_complete_export() -> None:
    for index in (0, 1):
        assert Reassembler().add(part("a", index, 1)).export is not None


def test_a_huge_total_needs_no_memory() -> None:
    reassembler = Reassembler()
    reassembler.add(part("a", 0, 2**60))
    assert reassembler.held_bytes < 2048


@pytest.mark.parametrize("name", ["max_bytes", "remembered"])
def test_a_bound_of_0_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        Reassembler(**{name: 0})


def test_a_thousand_shuffled_batches_are_put_in_order() -> None:
    sent = [part("a", n, 1000, [{"Row": n}]) for n in range(1000)]
    Random(1).shuffle(sent)
    reassembler = Reassembler()
    (export,) = [added.export for each in sent if (added := reassembler.add(each)).export]
    assert cells(export) == list(range(1000))
