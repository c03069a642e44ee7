"""The simulator of the second API generation as a function of the time: delays, expiry, limits and the verdict."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from asyncmig.simulator import Request, RunDurations
from asyncmig.simulator.migrations import Block, Column, Limits, Question, Schema, Script, Variants, World
from asyncmig.simulator.migrations.tables import Sheet, find_flaws
from asyncmig.simulator.server.limits import Budgets, FixedWindow, SlidingLog

KEY = "key"
CONTACTS = b"E-mail,Given Name,Surname,Phone\r\na@x.org,Ada,L,1\r\nb@x.org,Bob,M,2\r\nbad,Cy,N,\r\n"
FREE = Limits.parse("per-endpoint")
RUN_TAKES = 10.0
ASKS = Script(blocks={"generate": [Block(questions=(Question(text="Why?"),))]})


class Server:
    """One migration with one file, and a clock that the test sets."""

    def __init__(self, script: Script | None = None, *, limits: Limits = FREE, **variants: Any) -> None:
        self.world = World(
            key=KEY,
            limits=limits,
            variants=Variants(**variants),
            pace=RunDurations(queued=0.0, base=RUN_TAKES, per_row=0.0, sigma=0.0),
            scripts={"acme": script or Script()},
        )
        self.now = 1000.0
        self.run_id = ""
        status, body = self.call("POST", "/migrations", {"name": "Acme", "external_id": "acme"})
        assert status == 201
        self.path = f"/migrations/{body['migration']['id']}"

    def call(self, method: str, path: str, body: object = None, **query: str) -> tuple[int, Any]:
        request = Request(
            method=method,
            path=f"/api/v1{path}",
            query=query,
            headers={"x-api-key": KEY},
            body=b"" if body is None else json.dumps(body).encode(),
        )
        reply = self.world.handle(request, self.now)
        is_json = reply.body[:1] in (b"{", b"[")
        return reply.status, json.loads(reply.body) if is_json else reply.body

    def url(self, name: str = "contacts.csv") -> dict[str, Any]:
        status, body = self.call(
            "POST", f"{self.path}/files", {"files": [{"name": name, "content_type": "text/csv"}]}
        )
        assert status == 201
        return dict(body["files"][0])

    def put(self, file: Mapping[str, Any], content: bytes = CONTACTS) -> int:
        request = Request(
            method="PUT",
            path=f"/upload/{self.path}",
            query={"token": file["token"]},
            headers={"content-type": "text/csv"},
            body=content,
        )
        return self.world.storage(request, self.now).status

    def start(self, kind: str, **more: object) -> int:
        status, body = self.call("POST", f"{self.path}/runs", {"kind": kind, **more})
        self.run_id = body.get("run_id", self.run_id)
        return status

    def run(self, kind: str, **more: object) -> None:
        assert self.start(kind, **more) == 201
        self.now += RUN_TAKES + 1

    def read(self) -> Any:
        status, body = self.call("GET", f"{self.path}/runs/{self.run_id}")
        return body["status"] if status == 200 else status

    def answer(self) -> int:
        body = {"answers": "Because"}
        return self.call("POST", f"{self.path}/runs/{self.run_id}/messages", body)[0]

    def cancel(self) -> int:
        body = {"status": "cancel_requested"}
        return self.call("PATCH", f"{self.path}/runs/{self.run_id}", body)[0]


def with_file(script: Script | None = None, **variants: Any) -> Server:
    server = Server(script, **variants)
    server.now += 10
    assert server.put(server.url()) == 200
    return server


def test_an_old_status_is_shown_for_a_time_after_the_end_of_a_run() -> None:
    server = with_file(old_end=20.0)
    server.run("generate")
    server.run("execute")  # this run has ended
    assert server.read() == "awaiting_approval"
    server.now += 20
    assert server.read() == "completed"


def test_a_block_is_shown_for_a_time_after_its_answer() -> None:
    server = with_file(ASKS, old_block=5.0)
    server.run("generate")
    assert server.answer() == 200
    assert server.read() == "blocked"
    server.now += 5
    assert server.read() == "running"
    assert server.answer() == 409


@pytest.mark.parametrize("lifetime", [None, 1800.0])
def test_a_blocked_run_waits_without_limit_or_fails_after_its_lifetime(lifetime: float | None) -> None:
    server = with_file(ASKS, blocked_lives=lifetime)
    server.run("generate")
    server.now += 1700
    assert server.read() == "blocked"
    server.now += 1e6
    assert server.read() == ("blocked" if lifetime is None else "failed")


@pytest.mark.parametrize("lifetime", [None, 3600.0])
def test_a_preview_can_be_executed_without_limit_or_during_its_lifetime(lifetime: float | None) -> None:
    server = with_file(preview_lives=lifetime)
    server.run("generate")
    server.now += 1e6
    assert server.start("execute") == (201 if lifetime is None else 409)
    if lifetime is not None:
        assert server.start("generate") == 201
        assert server.world.verdict(server.now).generated_twice == 0


def test_retention_deletes_an_inactive_migration() -> None:
    server = with_file(retention=7200.0)
    server.run("generate")
    server.now += 7100
    assert server.call("GET", f"{server.path}/preview")[0] == 200
    server.now += 200
    assert server.call("GET", f"{server.path}/preview")[0] == 404
    assert server.call("POST", "/migrations", {"name": "Acme", "external_id": "acme"})[0] == 201
    assert server.world.verdict(server.now).duplicate_migrations == 0


def test_new_objects_are_unknown_for_some_seconds() -> None:
    server = Server(lag=5.0)
    assert server.call("GET", f"{server.path}/files")[0] == 404
    server.now += 5
    assert server.put(server.url()) == 200
    assert server.start("generate") == 201
    assert server.read() == 404
    server.now += RUN_TAKES
    assert server.read() == "awaiting_approval"
    assert server.call("GET", f"{server.path}/preview")[0] == 404
    server.now += 5
    assert server.call("GET", f"{server.path}/preview")[0] == 200


def test_a_signed_url_expires_and_can_be_used_once() -> None:
    server = Server(url_lives=30.0)
    late, used = server.url("late.csv"), server.url("used.csv")
    server.now += 29
    assert (server.put(used), server.put(used)) == (200, 403)
    server.now += 2
    assert server.put(late) == 403
    assert len(server.call("GET", f"{server.path}/files")[1]["files"]) == 1


def test_a_run_keeps_its_run_slot_until_its_cancellation_is_complete() -> None:
    server = with_file(cancel_takes=20.0, limits=Limits(rates={}, runs=1))
    server.start("generate")
    assert server.cancel() == 200
    assert server.read() == "running"
    assert server.start("generate") == 409
    server.now += 20
    assert server.read() == "canceled"
    assert server.start("generate") == 201


def test_answers_are_refused_for_some_seconds_after_a_block() -> None:
    server = with_file(ASKS, listens_after=3.0)
    server.start("generate")
    server.now += RUN_TAKES
    assert (server.read(), server.answer()) == ("blocked", 409)
    server.now += 3
    assert server.answer() == 200


def test_a_run_of_a_dead_engine_fails_after_some_minutes() -> None:
    server = with_file(zombies=1.0)
    server.run("generate")
    assert server.read() == "running"
    server.now += 600
    assert server.read() == "failed"


@pytest.mark.parametrize(("expired", "seen"), [("gone", (410, None)), ("no-link", (200, None))])
def test_an_export_gets_its_link_late_and_the_link_expires(expired: str, seen: tuple[int, None]) -> None:
    server = with_file(late_url=5.0, expired_job=expired)
    server.run("generate")
    server.run("execute")
    job = server.call("POST", f"{server.path}/exports", {"slug": "contacts"})[1]["job_id"]

    def link() -> tuple[int, str | None]:
        status, body = server.call("GET", f"{server.path}/exports/jobs/{job}")
        return status, body.get("download_url")

    assert server.call("POST", f"{server.path}/exports", {"slug": "deals"})[0] == 409
    server.now += RUN_TAKES
    assert link() == (200, None)
    server.now += 5
    status, url = link()
    assert url is not None
    request = Request(method="GET", path="/" + url.split("/", 3)[3])
    assert (status, server.world.storage(request, server.now).status) == (200, 200)
    server.now += 301
    assert server.world.storage(request, server.now).status == 403
    server.now += 3600
    assert link() == seen


@pytest.mark.parametrize(
    "server",
    [with_file(Script(fails={"export": "Disk full"})), with_file(failing_jobs=1.0)],
    ids=["script", "share"],
)
def test_an_export_may_fail(server: Server) -> None:
    server.run("generate")
    server.run("execute")
    job = server.call("POST", f"{server.path}/exports", {"slug": "contacts"})[1]["job_id"]
    server.now += RUN_TAKES
    state = server.call("GET", f"{server.path}/exports/jobs/{job}")[1]
    assert (state["status"], state["download_url"]) == ("failed", None)
    assert state["error"]


@pytest.mark.parametrize(("shown", "closed"), [("listed", True), ("none", False), ("none-closed", True)])
def test_the_variant_decides_whether_options_are_shown(shown: str, closed: bool) -> None:
    question = Question(text="Which?", options=("A", "B"), allow_custom=False)
    server = with_file(Script(blocks={"generate": [Block(questions=(question,))]}), options=shown)
    server.run("generate")
    asked = server.call("GET", f"{server.path}/runs/{server.run_id}")[1]["questions"][0]
    assert (bool(asked["options"]), asked["allowCustom"]) == (shown == "listed", not closed)
    assert server.answer() == (400 if shown == "listed" else 200)


@pytest.mark.parametrize("replies", ["told", "absent"])
def test_the_thread_may_lack_the_answers_of_the_user(replies: str) -> None:
    server = with_file(ASKS, replies=replies)
    server.run("generate")
    server.answer()
    events = server.call("GET", f"{server.path}/thread")[1]["events"]
    assert ("Because" in str(events)) == (replies == "told")


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ("questions", {"questions": ["Why?"]}),
        ("requests", {"requests": ["Why?"]}),
        ("inputs", {"inputs": ["Why?"]}),
        ("list", ["Why?"]),
        ("one", "Why?"),
    ],
)
def test_the_thread_has_questions_in_each_shape(shape: str, shown: object) -> None:
    server = with_file(ASKS, request_input=shape)
    server.run("generate")
    events = server.call("GET", f"{server.path}/thread")[1]["events"]
    data = next(event["data"] for event in events if event["type"] == "request_input")
    question = server.call("GET", f"{server.path}/runs/{server.run_id}")[1]["questions"][0]
    assert data == json.loads(json.dumps(shown).replace('"Why?"', json.dumps(question)))


@pytest.mark.parametrize(("parent", "flaws"), [("Acme", 0), ("Nobody", 1)])
def test_a_link_is_enforced_in_addition_to_a_schema(parent: str, flaws: int) -> None:
    companies = Schema(slug="companies", name="Companies", columns=(Column(name="Name"),))
    link = {"templateId": "companies", "columnName": "Name", "valuePath": "name"}
    parent_column = Column(name="Parent", schema={"type": "object"}, link_rule=(link,))
    contacts = Schema(slug="contacts", name="Contacts", columns=(parent_column,))
    sheets = [
        Sheet(schema=companies, rows=[["Acme"]]),
        Sheet(schema=contacts, rows=[[json.dumps({"name": parent})]]),
    ]
    assert len(find_flaws(sheets)) == flaws


# Limits


def test_a_refusal_by_the_run_limit_shows_the_status_of_each_run() -> None:
    server = with_file(ASKS, limits=Limits(rates={}, runs=1))
    server.run("generate")
    assert server.read() == "blocked"
    other = server.call("POST", "/migrations", {"name": "Other", "external_id": "other"})[1]["migration"][
        "id"
    ]
    status, body = server.call("POST", f"/migrations/{other}/runs", {"kind": "generate"})
    assert (status, [run["status"] for run in body["runs"]]) == (429, ["blocked"])


def test_runs_of_other_clients_take_run_slots_and_cause_no_fault() -> None:
    server = with_file(foreign_runs=2, limits=Limits(rates={}, runs=1), concurrency_wait=None)
    statuses = set[int]()
    for _ in range(30):
        statuses.add(server.start("generate"))
        server.cancel()
        server.now += 600
    assert statuses == {201, 429}
    verdict = server.world.verdict(server.now)
    assert (verdict.over_the_limit, verdict.starts_beyond_three) == (0, 0)


def test_requests_over_a_limit_are_counted() -> None:
    server = with_file(limits=Limits(rates={"reads": (1, 60.0)}))
    assert [server.call("GET", "/sources")[0] for _ in range(3)] == [200, 429, 429]
    assert server.world.verdict(server.now).over_the_limit == 2


@pytest.mark.parametrize("phase", [0.0, 17.0])
def test_a_fixed_window_begins_at_its_phase(phase: float) -> None:
    server = with_file(limits=Limits(rates={"reads": (1, 60.0)}), phase=phase)
    server.now = 1200.0 + phase + 1
    assert server.call("GET", "/sources")[0] == 200
    server.now = 1260.0 + phase - 1
    assert server.call("GET", "/sources")[0] == 429
    server.now = 1260.0 + phase
    assert server.call("GET", "/sources")[0] == 200


@pytest.mark.parametrize("kind", [FixedWindow, SlidingLog])
@pytest.mark.parametrize("counts", [False, True])
def test_a_refused_request_counts_in_all_of_its_budgets_or_in_none(kind: Any, counts: bool) -> None:
    limits = {"agent": 3, "generate": 1}
    budgets = Budgets(lambda name: kind(limits[name], 3600.0, count_rejects=counts))
    assert budgets.admit(["agent", "generate"], 1.0)
    assert not budgets.admit(["agent", "generate"], 2.0)
    assert not budgets.admit(["agent", "generate"], 3.0)
    assert budgets.admit(["agent"], 4.0) == (not counts)


# The verdict


def test_a_necessary_generate_does_not_count_as_repeated() -> None:
    server = with_file(Script(fails={"generate": "Broken", "update": "Broken"}))
    server.run("generate")  # fails
    server.run("generate")
    server.run("update", message="Drop the bad rows")  # fails
    server.run("generate")
    assert server.world.verdict(server.now).generated_twice == 0
    server.run("generate")
    assert server.world.verdict(server.now).generated_twice == 1
    assert server.put(server.url("more.csv")) == 200
    server.run("generate")
    assert server.world.verdict(server.now).generated_twice == 1


def test_a_second_execute_counts_as_repeated_despite_a_generate_between_them() -> None:
    server = with_file()
    server.run("generate")
    server.run("execute")
    server.run("generate")
    server.run("execute")
    verdict = server.world.verdict(server.now)
    assert (verdict.generated_twice, verdict.executed_twice) == (1, 1)
    assert str(verdict) == (
        "executes of rows that were written before: 1; "
        "generates although a preview of the same files was there or was executed: 1"
    )
    server.run("generate")
    server.run("update", message="Drop the bad rows")
    server.run("execute")
    assert server.world.verdict(server.now).executed_twice == 1


def test_an_execute_after_a_failed_one_that_wrote_rows_counts_as_repeated() -> None:
    server = with_file(Script(fails={"execute": "Broken"}))
    server.run("generate")
    server.run("execute")
    server.run("generate")
    server.run("execute")
    assert server.world.verdict(server.now).executed_twice == 1


def test_only_requests_that_a_client_can_foresee_are_malformed() -> None:
    server = with_file(filter="refused", unused_urls_count=True)
    assert server.call("GET", f"{server.path}/exports/contacts.csv", filter="valid")[0] == 400
    for _ in range(17):
        files = [{"name": f"{n}.csv", "content_type": "text/csv"} for n in range(25)]
        assert server.call("POST", f"{server.path}/files", {"files": files})[0] == 201
    assert server.start("generate") == 400
    assert server.world.verdict(server.now).malformed == 0
    assert server.start("clarify") == 400
    assert server.world.verdict(server.now).malformed == 1
