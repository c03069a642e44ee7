"""The agent: what runs do, computed from `now` at each request, without timers."""

from random import Random
from typing import cast, final

from asyncmig.simulator.migrations.account import Account, Migration, Phase, Run
from asyncmig.simulator.migrations.scripts import Block, apply_update, ask_about, without_duplicates
from asyncmig.simulator.migrations.tables import (
    Sheet,
    coverage_of,
    find_flaws,
    read_rows,
    to_sheets,
)
from asyncmig.simulator.server.messages import Json
from asyncmig.simulator.server.tables import Rows, Unreadable

__all__ = ["Agent", "advance"]

Tables = list[tuple[list[str], Rows]]
_SWEEP = 600.0
"""Seconds after which a run whose engine died is swept to `failed`."""
_LIVE_ROWS = 5
_CREDENTIALS: Json = {"api_token": {"type": "string", "secret": True}}
_TIMED_OUT = "Import timed out"


def advance(account: Account, now: float) -> None:
    """Let every run of the account do what it does until `now`."""
    for migration in account.migrations.values():
        Agent(account, migration).advance(now)


@final
class Agent:
    """Works on one migration."""

    def __init__(self, account: Account, migration: Migration) -> None:
        self._account, self._migration = account, migration
        self._variants, self._rng = account.variants, account.rng

    def start(self, kind: str, message: str | None, now: float) -> Run:
        """Begin an operation: a new run for generate, otherwise a phase of the run that made the preview."""
        migration = self._migration
        migration.accepted.append((kind, now))
        migration.updates += kind == "update"
        phase = Phase(
            kind=kind,
            started_at=now,
            files=[file.name for file in migration.arrived],
            inputs=migration.inputs,
            updates=migration.updates,
            is_repeat=self._is_repeat(kind),
        )
        current = migration.current
        if message:
            migration.tell(now, "message", {"text": message, "role": "user"}, self._rng)
            if kind == "update":
                migration.requests.append(message)
        if kind == "generate":
            migration.resumable = True
            run = Run(id=self._account.new_id(), created_at=now, phases=[phase], wakes_at=now)
            migration.runs.append(run)
            queued, _ = self._account.pace.draw(0, self._rng)
            run.enter("queued", now, now + queued)
            return run
        assert current is not None
        run = current
        before = self.describe(run)
        if kind == "execute" and self._variants.execute_id == "new":
            run = Run(id=self._account.new_id(), created_at=now, phases=[phase], wakes_at=now)
            migration.runs.append(run)
        else:
            run.phases.append(phase)
            run.before, run.shows_before = before, now + self._variants.old_end
        run.report = run.error = None
        self._work(run, now)
        return run

    def _is_repeat(self, kind: str) -> bool:
        """Return whether a start repeats an operation, with nothing new in between.

        That is a generate whose preview exists or was imported, or an execute after rows were written.
        """
        migration = self._migration
        earlier = [phase for run in migration.runs for phase in run.phases]
        written = [phase for phase in earlier if (phase.outcome or {}).get("rows_written")]
        if kind == "execute":
            last = max(((phase.inputs, phase.updates) for phase in written), default=None)
            return last == (migration.inputs, migration.updates)
        generated = [phase.inputs for phase in earlier if phase.kind == "generate"]
        if kind != "generate" or not generated or generated[-1] < migration.inputs:
            return False
        current = migration.current
        can_resume = current is not None and current.status not in ("failed", "canceled")
        return bool(written) or (migration.preview is not None and migration.resumable and can_resume)

    def resume(self, run: Run, now: float) -> None:
        """Continue a blocked run after an answer or credentials."""
        run.before, run.shows_before = self.describe(run), now + self._variants.old_block
        run.phase.blocks += 1
        run.reason, run.request = None, None
        run.questions, run.asked = [], []
        self._work(run, now)

    def cancel(self, run: Run, now: float) -> None:
        """Cancel a run, at once or after the time that the variants state."""
        migration = self._migration
        migration.thread = [event for event in migration.thread if event.at <= now]
        if run.status == "awaiting_approval" and self._variants.cancel_at_preview == "loses-preview":
            migration.preview = None
        run.is_canceling, run.wakes_at = True, now + self._variants.cancel_takes
        self.advance(now)

    def advance(self, now: float) -> None:
        """Do what the current run does until `now`."""
        run = self._migration.current
        while run is not None and run.wakes_at <= now:
            self._migration.touched_at = at = run.wakes_at
            if run.is_canceling:
                self._end(run, "canceled", at)
            elif run.status == "queued":
                self._work(run, at)
            elif run.status == "running":
                self._settle(run, at)
            else:
                if run.status == "awaiting_approval":
                    self._migration.resumable = False
                self._fail(run, _TIMED_OUT, at)

    def _work(self, run: Run, now: float) -> None:
        """Begin to run: plan the thread's lines and the end."""
        rows = sum(len(rows) for _, rows in self._tables_or_none())
        _, seconds = self._account.pace.draw(rows, self._rng)
        if run.phase.blocks == 0 and self._rng.random() < self._variants.zombies:
            run.error, seconds = _TIMED_OUT, _SWEEP
        migration, kind = self._migration, run.phase.kind
        run.message = f"Working: {kind}"
        lines: tuple[tuple[str, object], ...] = (
            ("status", {"message": run.message}),
            ("prepared", {"files": len(migration.arrived)}),
            ("thinking", {"text": "Comparing columns with the templates"}),
            ("tool_call", {"name": "read_files"}),
            ("tool_result", {"name": "read_files", "ok": True}),
            ("task", {"title": kind, "state": "in_progress"}),
            ("message", {"text": f"I am working on {migration.name}"}),
            ("message", ": reading the data."),
        )
        for n, (name, data) in enumerate(lines):
            migration.tell(now + seconds * n / (len(lines) + 1), name, data, self._rng)
        run.enter("running", now, now + seconds)

    def _settle(self, run: Run, at: float) -> None:
        """End a stretch of work: fail, block, or finish the operation."""
        kind, migration = run.phase.kind, self._migration
        if run.error is not None:
            return self._fail(run, run.error, at)
        failure = migration.next_failure(kind)
        if failure is not None:
            if kind == "execute":
                self._write(run, share=2)
            return self._fail(run, failure, at)
        try:
            tables = self._tables()
        except Unreadable as error:
            return self._fail(run, str(error), at)
        block = self._next_block(run, tables)
        if block is not None:
            return self._block(run, block, at)
        if kind in ("generate", "update"):
            return self._preview(run, tables, at)
        if kind == "clarify":
            migration.tell(at, "message", {"text": "Every row of the files is in the preview."}, self._rng)
            return self._end(run, self._variants.after_clarify, at)
        self._write(run, share=1)
        run.report = migration.report = self._report()
        return self._end(run, "completed", at)

    # Contents

    def _tables_or_none(self) -> Tables:
        try:
            return self._tables()
        except Unreadable:
            return []

    def _tables(self) -> Tables:
        """Return the tables of the files, and those of the live connection where generate reads it."""
        migration = self._migration
        found = [table for file in migration.arrived for table in read_rows(file.name, file.content or b"")]
        if self._reads_live():
            found += [
                (
                    sheet.header,
                    [[_live_cell(name, n) for name in sheet.header] for n in range(_LIVE_ROWS)],
                )
                for sheet in migration.grids()
            ]
        return found

    def _reads_live(self) -> bool:
        migration = self._migration
        if not migration.connections:
            return False
        return migration.live if migration.live is not None else not migration.arrived

    def _sheets(self, tables: Tables) -> list[Sheet]:
        """Return the sheets that would be imported: after the answers, and what updates asked for."""
        migration = self._migration
        sheets = to_sheets(tables, migration.schemas)
        for sheet in sheets:
            sheet.rows = without_duplicates(sheet, migration.decisions)
        if self._variants.second_generate == "differs":
            times = sum(phase.kind == "generate" for run in migration.runs for phase in run.phases)
            for sheet in sheets:
                Random(times).shuffle(sheet.rows)
        for request in migration.requests:
            apply_update(request, sheets)
        return sheets

    def _next_block(self, run: Run, tables: Tables) -> Block | None:
        migration, phase = self._migration, run.phase
        if phase.pending:
            questions, phase.pending = tuple(phase.pending), []
            phase.blocks -= 1
            return Block(questions=questions)
        scripted = migration.script.blocks.get(phase.kind, ())
        if phase.blocks < len(scripted):
            return scripted[phase.blocks]
        if phase.kind != "generate":
            return None
        if self._reads_live() and not all(
            connection["creds_configured"] for connection in migration.connections.values()
        ):
            return Block(credentials=_CREDENTIALS)
        sheets = to_sheets(tables, migration.schemas)
        asked = [each for each in ask_about(sheets, tables) if each.text not in migration.decisions]
        return Block(questions=tuple(asked)) if asked else None

    # Ends of a stretch of work

    def _block(self, run: Run, block: Block, at: float) -> None:
        migration, variants = self._migration, self._variants
        lives = variants.blocked_lives
        run.enter("blocked", at, float("inf") if lives is None else at + lives)
        run.reason = "question" if block.credentials is None else "credentials"
        if block.credentials is not None:
            connection = next(iter(migration.connections.values()), {"id": self._account.new_id()})
            run.request = {
                "connection_id": connection["id"],
                "source_key": connection.get("source_key", "api"),
                "source_name": connection.get("name", "API"),
                "reason": "The source asks for credentials",
                "guidance": {"summary": "Create a token", "steps": ["Open the settings"], "links": []},
                "schema": dict(block.credentials),
            }
            told: object = {
                "kind": "source_credentials",
                "connectionId": run.request["connection_id"],
                "sourceKey": run.request["source_key"],
                "sourceName": run.request["source_name"],
                "reason": run.request["reason"],
                "credentialGuidance": run.request["guidance"],
                "credentialSchema": run.request["schema"],
            }
        elif variants.block_reason == "unknown":
            run.reason, told = "human_review", {"question": "A person of the provider has to look at this"}
        else:
            first = 1
            if variants.question_ids == "unique":
                first += sum(len(phase.questions) for each in migration.runs for phase in each.phases)
            run.asked = list(block.questions)
            run.questions = [
                question.describe(f"q{first + n}", shown=variants.options)
                for n, question in enumerate(block.questions)
            ]
            run.phase.questions += run.questions
            shape, is_single = variants.request_input, len(run.questions) == 1
            bare = {"list": run.questions, "one": run.questions[0] if is_single else run.questions}
            told = bare.get(shape, {shape: run.questions})
        migration.tell(at, "request_input", told, self._rng)

    def _preview(self, run: Run, tables: Tables, at: float) -> None:
        migration, lives = self._migration, self._variants.preview_lives
        migration.preview, migration.preview_at = self._sheets(tables), at
        migration.tell(at, "preview", {"sheets": len(migration.preview)}, self._rng)
        self._end(run, "awaiting_approval", at)
        run.wakes_at = float("inf") if lives is None else at + lives

    def _write(self, run: Run, *, share: int) -> None:
        """Write the rows of the preview to the workbook, or one in `share` of them."""
        migration = self._migration
        adds = self._variants.second_execute == "adds"
        run.phase.replaced = bool(migration.workbook) and not adds
        for sheet in migration.preview or []:
            rows = [list(row) for row in sheet.rows[: len(sheet.rows) // share]]
            before = migration.workbook.get(sheet.schema.slug, []) if adds else []
            migration.workbook[sheet.schema.slug] = [*before, *rows]
        run.phase.outcome = {"rows_written": sum(len(s.rows) // share for s in migration.preview or [])}
        if self._variants.preview_after_execute == "gone" and share == 1:
            migration.preview = None

    def _report(self) -> Json:
        sheets = self._migration.grids()
        variants = self._variants
        bad = {(flaw.slug, flaw.row) for flaw in find_flaws(sheets)}
        shown = [sheet for sheet in sheets if sheet.rows or variants.per_sheet == "all"]
        inputs = [{"file": file.name, "bytes": len(file.content or b"")} for file in self._migration.arrived]
        coverage = {"inputs": inputs, "outputs": coverage_of(sheets)}
        return {
            "inserted": sum(len(sheet.rows) for sheet in sheets),
            "perSheet": None
            if variants.per_sheet == "null"
            else [
                {
                    "templateName": "Sheet" if variants.template_names == "repeated" else sheet.schema.name,
                    "sheetId": f"{self._migration.id[:8]}-{sheet.schema.slug}",
                    "rowCount": len(sheet.rows),
                }
                for sheet in shown
            ],
            "invalidCellCount": len(bad),
            "coverage": {"object": coverage, "list": coverage["outputs"], "null": None}[variants.coverage],
        }

    def _fail(self, run: Run, error: str, at: float) -> None:
        run.error = error
        self._migration.tell(at, "error", {"message": error}, self._rng)
        self._end(run, "failed", at)

    def _end(self, run: Run, status: str, at: float) -> None:
        run.is_canceling = False
        run.reason, run.request, run.questions, run.asked = None, None, [], []
        run.enter(status, at)
        written = cast("int", (run.phase.outcome or {}).get("rows_written", 0))
        run.phase.outcome = {
            "ok": status in ("completed", "awaiting_approval"),
            "rows_written": written,
            "per_sheet": [
                {"sheet": sheet.schema.name, "rows": len(sheet.rows)} for sheet in self._migration.grids()
            ]
            if written
            else [],
            "invalid_rows": (run.report or {}).get("invalidCellCount", 0),
            "error": run.error,
            "replaced_existing_data": run.phase.replaced,
        }
        if status == "completed":
            self._migration.tell(at, "completed", {"kind": run.phase.kind}, self._rng)

    def describe(self, run: Run) -> Json:
        """Return the run as a read shows it."""
        status, variants = run.status, self._variants
        shown: Json = {
            "run_id": run.id,
            "status": (variants.strange_status or status) if status == "running" else status,
            "created_at": self._account.time_text(run.created_at),
        }
        if status in ("queued", "running"):
            shown["message"] = run.message
        if status == "blocked":
            if variants.block_reason != "absent" or run.reason != "question":
                shown["blocked_reason"] = run.reason
            if run.request is not None:
                shown["credential_request"] = run.request
            else:
                shown["questions"] = run.questions
        if status == "completed" and run.report is not None:
            shown["report"] = run.report
        if status == "failed":
            shown["error"] = run.error
        if run.answers is not None:
            shown["answers"] = run.answers
        return shown


def _live_cell(column: str, number: int) -> str:
    plain = column.lower()
    if "email" in plain or "contact" in plain:
        return f"live{number}@example.com"
    return {"stage": "lead", "amount": str(100 * number), "phone": "1"}.get(plain, f"{column} {number}")
