"""A reply is decoded, or refused with an error that names the field. It causes no other error."""

import contextlib
import json

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from asyncmig._core.decode import Unreadable, decode, repaired
from asyncmig.companies import wire
from asyncmig.customers.outcome import ImportReport
from asyncmig.customers.questions import Action, Patch

REPLIES = [
    wire.Sources,
    wire.Templates,
    wire.CompanyCreated,
    wire.UploadTarget,
    wire.RunStarted,
    wire.ImportState,
    wire.ActiveImport,
    wire.ExportState,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


def test_numbers_may_be_strings_and_unknown_fields_are_ignored() -> None:
    state = decode(
        b'{"status": "completed", "novelty": [1], "report": {"inserted": "12", "invalidCellCount": "3"}}',
        wire.ImportState,
    )
    assert state.report is not None
    assert (state.report.inserted, state.report.invalid_rows) == (12, 3)


def test_null_in_an_optional_field_means_absent() -> None:
    state = decode(
        b'{"status": "completed", "report": {"inserted": 1, "perSheet": null}, "progress_message": null}',
        wire.ImportState,
    )
    assert state.report == ImportReport(inserted=1)


def test_an_optional_field_of_another_type_does_not_prevent_decoding() -> None:
    state = decode(
        b'{"status": "running", "report": [1, 2], "progress_message": {"percent": 5}, "error": 7}',
        wire.ImportState,
    )
    assert state.report is None
    assert state.progress_message == '{"percent":5}'
    assert state.error == "7"


def test_invalid_characters_in_a_text_are_replaced() -> None:
    """A server that truncates a sample inside a character sends half a surrogate pair or invalid UTF-8."""
    body = rb'{"status": "\\ud83d", "error": "cut \ud83d", "progress_message": "\ud83d\ude00 \ude00\n"}'
    state = decode(b"\xef\xbb\xbf" + body.replace(b"cut", b"\xff"), wire.ImportState)
    assert (state.status, state.error, state.progress_message) == (r"\ud83d", "� �", "😀 �\n")


def test_an_undecodable_item_of_a_list_does_not_remove_other_items() -> None:
    hollow = '{"ok": true, "status": 200, "fields_confirmed": false}'
    state = decode(
        f'{{"status": "completed", "report": {{"results": [{hollow}, null, 7]}}}}'.encode(),
        wire.ExportState,
    )
    assert state.report is not None
    assert (len(state.report.results), len(state.report.hollow)) == (3, 1)
    patch = decode(b'{"actions": [{"action": "keep"}, "erase"]}', Patch)
    assert patch.is_destructive  # the effect of an unknown action is not known


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'{"status": ', b"[]", b"null", b'{"run": 1}', b'{"status": null}', b"\xff\xfe"]
)
def test_an_undecodable_body_raises_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        decode(body, wire.ImportState)


def test_the_error_names_the_field() -> None:
    with pytest.raises(Unreadable, match=r"sources\[0\]\.id"):
        decode(b'{"sources": [{"name": "x"}]}', wire.Sources)


def test_an_undecodable_action_makes_the_patch_destructive() -> None:
    patch = {"summary": "x", "actions": [{"action": "keep"}, "delete everything"]}
    state = decode(
        json.dumps({"status": "needs_attention", "needs_attention": {"proposed_patch": patch}}).encode(),
        wire.ImportState,
    )
    assert state.needs_attention is not None
    assert state.needs_attention.is_destructive


@pytest.mark.parametrize(
    ("action", "destructive"),
    [
        ("set_value", False),
        ("keep", False),
        ("delete_invalid_rows", True),
        ("dedup_keep_first", True),
        ("merge_rows", True),
        (None, True),
    ],
)
def test_only_known_harmless_actions_are_not_destructive(action: str | None, destructive: bool) -> None:
    assert Action(action=action).is_destructive is destructive


@pytest.mark.parametrize("kind", REPLIES, ids=lambda kind: kind.__name__)
@given(value=JSON, names=st.data())
def test_any_json_is_decoded_or_raises_unreadable(
    kind: type[msgspec.Struct], value: object, names: st.DataObject
) -> None:
    fields = [field.encode_name for field in msgspec.structs.fields(kind)]
    body = value
    if names.draw(st.booleans()):
        body = {name: names.draw(JSON) for name in names.draw(st.lists(st.sampled_from(fields), max_size=4))}
    try:
        decoded = decode(json.dumps(body).encode(), kind)
    except Unreadable:
        return
    assert isinstance(decoded, kind)


@given(st.binary(max_size=60))
def test_random_bytes_raise_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        decode(body, wire.CompanyCreated)


# JSON that is not strict

STATUS = '"status": "completed"'


@pytest.mark.parametrize(
    "body",
    [
        f'{{{STATUS}, "score": NaN}}',
        f'{{"score": -Infinity, {STATUS}, "scores": [Infinity, +inf, nan, -NaN, -nan(ind), 1.#QNAN, -1.#INF]}}',
        f'{{"score": 1e999, {STATUS}, "other": -1E+400}}',
        f'{{"score": {"9" * 5000}, {STATUS}}}',
        f'{{"deep": {"[" * 5000}{"]" * 5000}, {STATUS}}}',
        '{"deep": ' + '{"a":' * 5000 + "1" + "}" * 5000 + f", {STATUS}}}",
        f'{{{STATUS}, "text": "a tab\tand\na newline"}}',
        rf'{{{STATUS}, "text": "it\'s C:\dir \u12"}}',
        f"\ufeff\ufeff{{{STATUS}}}",
        f"{{{STATUS}}}\n\0\0",
        f"{{{STATUS}}}\n<!-- served by a proxy -->",
        f"{{{STATUS}}}}}",
        f'{{"status": "running", {STATUS}}}',
        f'{{"status": "running", "score": NaN, {STATUS}}}',
    ],
)
def test_a_field_that_is_not_strict_json_does_not_hide_the_status(body: str) -> None:
    assert decode(body.encode(), wire.ImportState).status == "completed"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_another_encoding_of_unicode_is_read(encoding: str) -> None:
    state = decode('{"status": "completed", "error": "Zürich"}'.encode(encoding), wire.ImportState)
    assert (state.status, state.error) == ("completed", "Zürich")


def test_nan_and_infinity_become_null_as_numbers_and_are_unchanged_in_a_text() -> None:
    report = b'{"inserted": NaN, "invalidCellCount": 1e999}'
    text = b'"NaN, -Infinity \\" 1e999"'
    state = decode(b'{"status": "completed", "error": %b, "report": %b}' % (text, report), wire.ImportState)
    assert state.error == 'NaN, -Infinity " 1e999'
    assert state.report == ImportReport()


@pytest.mark.parametrize(
    "body",
    [
        b'{"status": "completed", "score": NaN',
        b'{"status": "completed", "score": NaN, "text": "cut',
        b'{"status": "completed"',
        b'{"status": "running"}{"status": "completed"}',
        b'{"status": "running"}\n{"status": "completed"}\n',
        b'{"status": completed}',
        b'<html>{"status": "completed"}</html>',
        b'{"status": "completed"' + b"[" * 5000,
    ],
)
def test_truncated_or_ambiguous_json_is_not_repaired(body: bytes) -> None:
    with pytest.raises(Unreadable):
        decode(body, wire.ImportState)


@given(JSON)
def test_a_repair_does_not_change_strict_json(value: object) -> None:
    text = json.dumps(value)
    assume("Infinity" not in text)
    assert json.loads(repaired(text.encode())) == value


@given(st.text(alphabet='{}[]",:\\u0dNaIfty1.e-\n\ud83d', max_size=40))
def test_a_repair_of_any_text_returns_bytes_or_raises_unreadable(text: str) -> None:
    with contextlib.suppress(Unreadable):
        assert isinstance(repaired(text.encode("utf-8", "surrogatepass")), bytes)


# Bounds


def test_the_number_of_conversions_of_undecodable_items_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    count, convert = 0, msgspec.convert

    def counted(*args: object, **options: object) -> object:
        nonlocal count
        count += 1
        return convert(*args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(msgspec, "convert", counted)
    item = b'{"ok": [], "status": [], "path": 7}'
    body = b'{"status": "completed", "report": {"results": [' + b",".join([item] * 100_000) + b"]}}"
    state = decode(body, wire.ExportState)
    assert count < 25_000
    assert state.status == "completed"


def test_a_reply_with_too_many_values_is_refused() -> None:
    with pytest.raises(Unreadable, match="more than 1000000 values"):
        decode(b'{"status": "completed", "x": [' + b"{}," * 1_000_001 + b"{}]}", wire.ImportState)
    with pytest.raises(Unreadable, match="more than 1000000 tokens"):
        decode(b'{"status": "completed", "x": ' + b"[" * 700_000 + b"]" * 700_000 + b"}", wire.ImportState)
