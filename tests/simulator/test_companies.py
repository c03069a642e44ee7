"""The simulator of the first API generation as a function of the time, compared with the contract."""

import json
from typing import Any

import pytest

from asyncmig.simulator import SCHEMAS, SOURCES, Request, RunDurations, Variants, World

KEY = "key"
CONTACTS, DEALS = SCHEMAS[1].id, SCHEMAS[2].id
RUN_TAKES = 10.0
GOOD = b"Email,First Name,Last Name\na@x.org,Ada,L\nb@x.org,Bob,M\n"
MORE = b"Email,First Name,Last Name\nc@x.org,Cy,N\n"
BAD = b"Email,First Name,Last Name\nd@x.org,Di,O\nd@x.org,Di,O\n"


class Server:
    """One company, and a clock that the test sets."""

    def __init__(self, **variants: Any) -> None:
        self.world = World(
            key=KEY,
            sources=SOURCES,
            schemas=SCHEMAS,
            variants=Variants(**variants),
            pace=RunDurations(queued=0.0, base=RUN_TAKES, per_row=0.0, sigma=0.0),
        )
        self.now = 1000.0
        body = {"name": "Acme", "source": next(iter(SOURCES)), "external_id": "acme"}
        status, company = self.call("POST", "/companies", body)
        assert status == 201
        self.path = f"/companies/{company['company']['id']}"
        self.sheet = next(sheet["id"] for sheet in company["sheets"] if sheet["template_id"] == CONTACTS)

    def call(self, method: str, path: str, body: object = None, *, key: str = KEY, **query: str) -> Any:
        request = Request(
            method=method,
            path=f"/api/v1{path}",
            query=query,
            headers={"x-api-key": key},
            body=b"" if body is None else json.dumps(body).encode(),
        )
        reply = self.world.handle(request, self.now)
        is_json = reply.body[:1] in (b"{", b"[")
        return reply.status, json.loads(reply.body) if is_json else reply.body

    def upload(self, content: bytes) -> str:
        asked = {"name": "contacts.csv", "content_type": "text/csv", "size": len(content)}
        status, upload = self.call("POST", f"{self.path}/uploads", asked)
        assert status == self.world.variants.upload_status
        put = Request(
            method="PUT",
            path="/" + upload["upload_url"].rsplit("/", 1)[1],
            headers={"content-type": "text/csv"},
            body=content,
        )
        assert self.world.storage(put, self.now).status == 200
        return str(upload["upload_ref"])

    def start(self, ref: str, key: str) -> tuple[int, Any]:
        files = [{"name": "contacts.csv", "upload_ref": ref}]
        return self.call("POST", f"{self.path}/imports", {"files": files, "idempotency_key": key})

    def run(self, content: bytes, key: str) -> str:
        status, run = self.start(self.upload(content), key)
        assert status == 201
        self.now += RUN_TAKES + 1
        return f"{self.path}/imports/{run['run_id']}"

    def rows(self) -> int:
        """Return the number of rows of the contacts."""
        text = self.call("GET", f"{self.path}/export.csv", sheet_id=self.sheet, filter="all")[1]
        return len(text.splitlines()) - 1


def test_a_rejected_import_keeps_the_rows_of_an_earlier_one() -> None:
    server = Server()
    server.run(GOOD, "first")
    path = server.run(BAD, "second")
    assert server.call("GET", path)[1]["status"] == "needs_attention"
    assert server.call("POST", f"{path}/decisions", {"decision": "reject"})[0] == 200
    server.now += RUN_TAKES
    assert server.call("GET", path)[1]["status"] == "failed"
    assert server.rows() == 2


def test_an_expired_park_inserts_no_rows() -> None:
    server = Server(park_lasts=60.0)
    path = server.run(BAD, "only")
    assert server.call("GET", path)[1]["status"] == "needs_attention"
    server.now += 61.0
    assert server.call("GET", path)[1]["status"] == "failed"
    assert server.rows() == 0


def test_a_failed_import_leaves_no_sheet() -> None:
    server = Server(zombies=1.0)
    server.run(b"Strange,Header\n1,2\n", "first")
    server.world.variants = Variants()
    path = server.run(GOOD, "second")
    sheets = server.call("GET", path)[1]["report"]["perSheet"]
    assert [sheet["templateName"] for sheet in sheets] == [schema.name for schema in SCHEMAS]


@pytest.mark.parametrize(("second", "rows"), [("appends", 3), ("replaces", 1)])
def test_a_second_import_appends_or_replaces(second: str, rows: int) -> None:
    server = Server(second_import=second)
    server.run(GOOD, "first")
    path = server.run(MORE, "second")
    assert server.call("GET", path)[1]["report"]["inserted"] == rows
    assert server.rows() == rows


@pytest.mark.parametrize(("uses", "status"), [("several", 201), ("one", 400)])
def test_an_upload_can_be_used_for_several_imports_or_for_one(uses: str, status: int) -> None:
    server = Server(upload_refs=uses)
    ref = server.upload(GOOD)
    assert server.start(ref, "first")[0] == 201
    server.now += RUN_TAKES + 1
    assert server.start(ref, "second")[0] == status
    assert server.start(ref, "first")[0] == 200  # the same payload starts no new import


@pytest.mark.parametrize(("counts", "status"), [(True, 409), (False, 200)])
def test_a_new_upload_changes_the_payload_of_a_repeated_import_or_not(counts: bool, status: int) -> None:
    server = Server(refs_count=counts)
    assert server.start(server.upload(GOOD), "key")[0] == 201
    assert server.start(server.upload(GOOD), "key")[0] == status


@pytest.mark.parametrize("status", [200, 201])
def test_an_upload_is_answered_with_the_status_of_the_variant(status: int) -> None:
    assert Server(upload_status=status).upload(GOOD)


def test_a_new_export_is_unknown_for_some_seconds() -> None:
    server = Server(lag=5.0, strange_status="paused")
    server.run(GOOD, "import")
    body = {"mode": "full", "idempotency_key": "export"}
    run = server.call("POST", f"{server.path}/exports", body)[1]
    path = f"{server.path}/exports/{run['run_id']}"
    assert server.call("GET", path)[0] == 404
    server.now += 5.0
    assert server.call("GET", path)[1]["status"] == "paused"


@pytest.mark.parametrize("has_text", [True, False])
def test_all_errors_have_a_text_or_none_has(has_text: bool) -> None:
    server = Server(error_body=has_text)
    for key, path, status in ((KEY, "/companies/x/imports", 404), ("other", "/sources", 401)):
        assert server.call("GET", path, key=key)[0] == status
        assert bool(server.call("GET", path, key=key)[1]) == has_text


def test_a_duplicate_name_does_not_count_as_a_malformed_request() -> None:
    server = Server()
    body = {"name": "Acme", "source": next(iter(SOURCES))}
    assert server.call("POST", "/companies", body)[0] == 400
    assert server.world.verdict(server.now).malformed == 0
    assert server.call("POST", "/companies", {"name": "Acme"})[0] == 400
    assert server.world.verdict(server.now).malformed == 1


def test_a_key_leak_is_counted() -> None:
    server = Server()
    request = Request(method="PUT", path="/x", headers={"x-api-key": KEY})
    assert server.world.storage(request, server.now).status == 400
    assert server.world.verdict(server.now).key_leaks == 1


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"question_id": "fq0", "option_id": "b"}, 200),
        ({"question_id": "fq0", "option_id": "z"}, 400),
        ({"question_id": "fq0"}, 400),
        ({"question_id": "fq0", "custom": "no text of one's own is allowed"}, 400),
        ({"question_id": "fq7", "option_id": "a"}, 400),
    ],
    ids=str,
)
def test_only_answers_that_the_question_allows_are_accepted(answer: dict[str, str], status: int) -> None:
    server = Server()
    path = server.run(BAD, "only")
    assert server.call("GET", path)[1]["needs_attention"]["questions"][0]["allow_custom"] is False
    decision = {"decision": "approve", "answers": [answer]}
    assert server.call("POST", f"{path}/decisions", decision)[0] == status
