"""A scripted account of the second API generation: tests set the timeline of its run states."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from asyncmig._io.transport import Body, Lost, Response, Timeouts

BASE_URL = "https://api.test/api/v1"
Json = dict[str, Any]
QUESTION = {
    "id": "q1",
    "question": "Which date?",
    "options": [{"id": "a", "label": "Day first"}],
    "allowCustom": True,
}
REPORT = {
    "inserted": 3,
    "perSheet": [
        {"templateName": "Contacts", "sheetId": "s1", "rowCount": 2},
        {"templateName": "Deals", "rowCount": 1},
    ],
    "invalidCellCount": 0,
}
SHEETS = {"contacts": "Name,Email\r\nAda,a@x.org\r\nBob,b@x.org\r\n", "deals": "Name\r\nBig\r\n"}


@dataclass
class Reply:
    status: int
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: AsyncIterator[bytes] | None = None
    cut: bool = False

    async def chunks(self) -> AsyncGenerator[bytes]:
        if self.stream is not None:
            async for chunk in self.stream:
                yield chunk
        elif isinstance(self.body, bytes):
            yield self.body
        elif self.body is not None:
            yield json.dumps(self.body).encode()
        if self.cut:
            raise Lost("ClientPayloadError", sent=True)


class Account:
    """A transport to an account with one migration. Times are seconds on the loop's clock.

    `fault(method, path, number)`: the fault of a request, see `exchange`; "lost": the request is processed and has no
    response; "vanished": it is not processed; or the status of an error. `lag`: reads of runs return the state of so
    many seconds ago. `steps`: the states that follow each kind of start or an answer, as (seconds, state).
    """

    def __init__(self) -> None:
        self.sent: list[tuple[float, str, str, Any]] = []
        self.headers: list[tuple[str, Mapping[str, str]]] = []
        self.fault: Callable[[str, str, int], object] = lambda method, path, number: None
        self.lag = 0.0
        self.steps: dict[str, list[tuple[float, Json]]] = {
            "generate": [(60.0, {"status": "awaiting_approval"})],
            "update": [(60.0, {"status": "awaiting_approval"})],
            "clarify": [(60.0, {"status": "completed"})],
            "execute": [(60.0, {"status": "completed", "report": REPORT})],
            "answer": [(60.0, {"status": "awaiting_approval"})],
        }
        self.timeline: list[tuple[float, Json]] = []
        self.runs: list[tuple[float, str, str]] = []
        self.thread: list[tuple[float, Json]] = []
        self.log_hides_preview = False
        self.log_merges = False
        self.first_sequence = 1
        self.answered = 0
        self.stream_ends = True
        self.filters: str = "ignored"
        self.routes: dict[tuple[str, str], Callable[[Json, Mapping[str, str]], Reply]] = {}
        self.files: list[Json] = []
        self.sheets = dict(SHEETS)
        self.total: bool = True
        self.created: Json | None = None
        self.template: Json = {"slug": "contacts", "name": "Contacts", "columns": []}
        self.text: Json = {"knowledge": None, "updated_at": None}
        self.run_id = "run-1"
        self._numbers: Counter[tuple[str, str]] = Counter()

    # The transport

    @asynccontextmanager
    async def exchange(
        self, method: str, url: str, *, headers: Mapping[str, str], body: Body | None, timeouts: Timeouts
    ) -> AsyncGenerator[Response]:
        content = body if isinstance(body, bytes) else b"".join([c async for c in body]) if body else b""
        parts = urlsplit(url)
        path = unquote(parts.path.removeprefix("/api/v1"))
        self._numbers[method, path] += 1
        self.sent.append((self.now, method, path, content))
        self.headers.append((url, headers))
        fault = self.fault(method, path, self._numbers[method, path])
        await asyncio.sleep(0.05)
        if fault == "vanished":
            raise Lost("ServerDisconnectedError", sent=True)
        if isinstance(fault, int):
            headers = {"Content-Type": "application/json", "Retry-After": "3"}
            yield Reply(fault, {"error": f"fault {fault}"}, headers)
            return
        if fault == "refused":
            raise Lost("ClientConnectorError", sent=False)
        if fault == "page":
            yield Reply(200, b"<html>proxy</html>", {"Content-Type": "text/html"})
            return
        reply = self.handle(method, parts.netloc, path, dict(parse_qsl(parts.query)), content)
        await asyncio.sleep(0.05)
        if fault == "lost":
            raise Lost("ServerDisconnectedError", sent=True)
        if fault == "cut":
            reply.cut = True
        yield reply

    async def aclose(self) -> None:
        pass

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def count(self, method: str, ending: str) -> int:
        return sum(m == method and path.endswith(ending) for _, m, path, _ in self.sent)

    def starts(self) -> list[str]:
        return [kind for _, kind, _ in self.runs]

    # The account

    def handle(self, method: str, host: str, path: str, query: Mapping[str, str], content: bytes) -> Reply:
        body: Json = {}
        if host == "api.test" and content:
            body = json.loads(content)
        if (method, path) in self.routes:
            return self.routes[method, path](body, query)
        if host != "api.test":
            return self.storage(method, path, content)
        match method, path.strip("/").split("/"):
            case "POST", ["migrations"]:
                return self.create(body)
            case "POST", ["migrations", _, "files"]:
                names = [
                    f"p/{n}-{self._numbers[method, path]}-{each['name']}"
                    for n, each in enumerate(body["files"])
                ]
                url = "https://storage.test/{}?token=secret-token"
                files = [
                    {**each, "storage_path": name, "signed_url": url.format(name)}
                    for name, each in zip(names, body["files"], strict=True)
                ]
                return Reply(201, {"files": files})
            case "GET", ["migrations", _, "files"]:
                return Reply(200, {"files": self.files})
            case "POST", ["migrations", _, "runs"]:
                return self.start(body)
            case "GET", ["migrations", _, "runs", run_id]:
                return self.read(run_id)
            case "PATCH", ["migrations", _, "runs", run_id]:
                if self.state(self.now)["status"] not in ("queued", "running", "blocked"):
                    return Reply(409, {"error": "ended"})
                self.set_state(self.now, {"status": "canceled"})
                return self.read(run_id)
            case "POST", ["migrations", _, "runs", run_id, "messages" | "credentials" as what]:
                return self.answer(run_id, what, body)
            case "GET", ["migrations", _, "preview"]:
                return self.preview()
            case "GET", ["migrations", _, "thread"]:
                events = self.events(int(query.get("after", -1)))
                return Reply(
                    200, {"events": events, "last_sequence": events[-1]["sequence"] if events else None}
                )
            case "GET", ["migrations", _, "thread", "stream"]:
                return Reply(200, stream=self.stream(int(query.get("after", -1))))
            case "GET", ["migrations", _, "log"]:
                return self.log(query)
            case "GET", ["migrations", _, "exports", name]:
                return self.sheet(name.removesuffix(".csv"), query)
            case "GET", ["templates", _]:
                return Reply(200, self.template)
            case "PATCH", ["templates", _]:
                self.template = {**self.template, **body}
                return Reply(200, self.template)
            case "GET", [*_, "knowledge"]:
                return Reply(200, self.text)
            case "PATCH", [*_, "knowledge"]:
                if self.text["updated_at"] not in (None, body.get("if_unmodified_since")):
                    return Reply(412, {"error": "changed", "updated_at": self.text["updated_at"]})
                self.text = {"knowledge": body["knowledge"], "updated_at": f"at {self.now}"}
                return Reply(200, self.text)
        return Reply(404, {"error": f"no route {method} {path}"})

    def storage(self, method: str, path: str, content: bytes) -> Reply:
        self.files.append({"name": path.rsplit("-", 1)[-1], "storage_path": path[1:], "size": len(content)})
        return Reply(200)

    def create(self, body: Json) -> Reply:
        status = 200 if self.created else 201
        self.created = self.created or {
            "id": "m1",
            "name": body["name"],
            "source": body.get("source"),
            "status": "awaiting_files",
            "templates": [{"slug": "contacts", "name": "Contacts"}, {"slug": "deals", "name": "Deals"}],
        }
        return Reply(status, {"migration": self.created})

    def state(self, at: float) -> Json:
        past = [state for since, state in self.timeline if since <= at]
        return past[-1] if past else {"status": "none"}

    def set_state(self, at: float, state: Json) -> None:
        self.timeline = [(since, each) for since, each in self.timeline if since <= at]
        self.timeline.append((at, state))

    def add_event(self, at: float, kind: str, data: object = None) -> None:
        self.thread.append((at, {"type": kind, "data": data}))

    def events(self, after: int) -> list[Json]:
        ordered = sorted((each for each in self.thread), key=lambda each: each[0])
        numbered = [
            (at, {"sequence": 2 * n + self.first_sequence, **event}) for n, (at, event) in enumerate(ordered)
        ]
        return [event for at, event in numbered if at <= self.now and event["sequence"] > after]

    def schedule_steps(self, what: str) -> None:
        self.set_state(self.now, {"status": "running"})
        for after, state in self.steps[what]:
            self.timeline.append((self.now + after, state))
            kinds = {"awaiting_approval": "preview", "completed": "completed", "blocked": "request_input"}
            self.add_event(self.now + after, kinds.get(state["status"], "error"))

    def start(self, body: Json) -> Reply:
        state = self.state(self.now)["status"]
        if state in ("queued", "running", "blocked"):
            return Reply(409, {"error": "a run is in progress", "run_id": self.run_id})
        self.runs.append((self.now, body["kind"], self.run_id))
        self.schedule_steps(body["kind"])
        return Reply(201, {"run_id": self.run_id, "status": "running"})

    def read(self, run_id: str) -> Reply:
        state = self.state(self.now - self.lag)
        if run_id != self.run_id or state["status"] == "none":
            return Reply(404, {"error": "no such run"})
        return Reply(200, {"run_id": run_id, "created_at": "2026-01-01T00:00:00Z", **state})

    def answer(self, run_id: str, what: str, body: Json) -> Reply:
        state = self.state(self.now)
        reason = "credentials" if what == "credentials" else "question"
        if state["status"] != "blocked" or (state.get("blocked_reason") or "question") != reason:
            return Reply(409, {"error": "not blocked on this"})
        self.answered += 1
        self.schedule_steps("answer")
        return Reply(200, {"run_id": run_id, "status": "running"})

    def preview(self) -> Reply:
        if not any(state["status"] == "awaiting_approval" for at, state in self.timeline if at <= self.now):
            return Reply(404, {"error": "no preview"})
        templates = [{"slug": "contacts", "name": "Contacts"}, {"slug": "deals", "name": "Deals"}]
        bad = [{"rowIndex": "1", "columnName": "Email", "error": "empty"}, {"row": 2, "colIndex": 0}]
        rows = [["Name", "Email"], ["Ada", None]]
        sheet = {"template": templates[0], "rows": rows, "invalid_cells": bad}
        return Reply(200, {"status": "awaiting_approval", "templates": templates, "sheets": [sheet]})

    def log(self, query: Mapping[str, str]) -> Reply:
        status = self.state(self.now)["status"]
        if status in ("queued", "running", "blocked") or (
            self.log_hides_preview and status == "awaiting_approval"
        ):
            return Reply(409, {"error": "not settled", "status": status, "retry_after_seconds": 30})
        if query.get("format") == "md":
            return Reply(200, b"# Log", {"Content-Type": "text/markdown"})
        runs = [
            {"run_id": run_id, "kind": kind, "started_at": str(at), "status": status}
            for at, kind, run_id in self.runs
        ]
        if runs and self.log_merges:  # one entry per run, with the outcome of its last execution
            executed = [at for at, kind, _ in self.runs if kind == "execute"]
            merged = {
                **runs[0],
                "completed_at": str(self.runs[-1][0]),
                "outcome": {"ok": True} if executed else None,
            }
            runs = [merged]
        return Reply(200, {"status": "completed", "runs": runs})

    def sheet(self, slug: str, query: Mapping[str, str]) -> Reply:
        if slug not in self.sheets:
            return Reply(404, {"error": "no such sheet"})
        if self.filters == "refused" and "filter" in query:
            return Reply(400, {"error": "unknown parameter"})
        text = self.sheets[slug]
        if self.filters == "honoured" and query.get("filter", "valid") == "valid":
            text = "".join(line for line in text.splitlines(keepends=True) if "BAD" not in line)
        headers = {"X-Total-Records": str(text.count("\n") - 1)} if self.total else {}
        return Reply(200, text.encode(), {"Content-Type": "text/csv", **headers})

    async def stream(self, after: int) -> AsyncGenerator[bytes]:
        yield b": hello\n\n"
        while True:
            for event in self.events(after):
                after = event["sequence"]
                yield f"event: {event['type']}\r\ndata: {json.dumps(event)}\r\n\r\n".encode()
            if self.stream_ends and self.state(self.now)["status"] not in ("queued", "running", "blocked"):
                yield f'event: done\ndata: {{"last_sequence":{max(after, 0)}}}\n\n'.encode()
                return
            await asyncio.sleep(1.0)
