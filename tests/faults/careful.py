"""A caller of the client for the generation "migrations". It stores each step, and continues after its process died.

It implements a minimal workflow: create, upload, generate, answer, update, execute, download.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec
from inprocess import BASE_URL, KEY
from mortal import Process

from asyncmig import (
    ApiError,
    Conflict,
    NoAnswer,
    NotFound,
    RunCanceled,
    RunFailed,
    ServerError,
    Session,
    UnknownOutcome,
)
from asyncmig._io.transport import Transport
from asyncmig.journal import ClaimPort, JournalPort
from asyncmig.migrations import (
    CredentialsNeeded,
    Downloaded,
    Kind,
    Migration,
    Preview,
    Question,
    Questions,
    Report,
    Run,
    Sheet,
    StartPoint,
)
from asyncmig.simulator.migrations import DROP

SECRETS = {"api_token": "right"}
_TRIES = 6


@dataclass(frozen=True)
class Customer:
    """One customer of a caller.

    `connects`: the caller saves a connection to a live source. `update`: it asks the agent to drop bad rows before
    the execution. `clarify`: it asks the agent a question before the execution.
    """

    external_id: str
    files: Mapping[str, bytes]
    connects: bool = False
    update: bool = False
    clarify: bool = False

    @property
    def kinds(self) -> list[Kind]:
        update: list[Kind] = ["update"] if self.update else []
        clarify: list[Kind] = ["clarify"] if self.clarify else []
        return ["generate", *update, *clarify, "execute"]


class Notes(msgspec.Struct):
    """The progress that the caller stores in the journal. It is available after the process died."""

    migration: str = ""
    sheets: tuple[Sheet, ...] = ()
    uploaded: bool = False
    done: list[str] = []
    point: StartPoint | None = None
    run: str = ""
    report: Report | None = None
    tries: int = 0
    end: str = ""


@dataclass
class Ended:
    """The result for one customer. `how`: delivered, failed, unknown, parked or gone (the server answered 404)."""

    how: str
    error: str = ""
    files: Sequence[Downloaded] = field(default_factory=list)


class Caller:
    """Migrates one customer."""

    def __init__(self, session: Session, claim: ClaimPort, customer: Customer, folder: Path) -> None:
        self.session, self.claim, self.customer, self.folder = session, claim, customer, folder
        state = claim.state
        self.is_restarted = state is not None
        self.notes = Notes() if state is None else msgspec.json.decode(state, type=Notes)

    async def note(self, kind: str) -> None:
        await self.claim.write(kind, b"{}", msgspec.json.encode(self.notes))

    async def run(self) -> Ended:
        notes = self.notes
        if notes.end:
            how, _, error = notes.end.partition(": ")
            return Ended(how, error)
        try:
            migration = await self.filled()
            while (
                left := [kind for kind in self.customer.kinds if kind not in notes.done]
            ) and not notes.end:
                await self.operate(migration, left[0])
            if notes.end:
                return await self.run()
            files = await self.delivered(migration)
        except NotFound as error:
            if not self.is_restarted:
                return await self.ended("gone", error)
            self.is_restarted = False
            await asyncio.sleep(60.0)  # a previous process may have created it a moment ago
            return await self.run()
        except UnknownOutcome as error:
            return await self.ended("unknown", error)
        await self.note("delivered")
        return Ended("delivered", files=files)

    async def delivered(self, migration: Migration) -> list[Downloaded]:
        for _ in range(_TRIES):
            with suppress(RunFailed):  # an export job failed
                return await migration.download(to=self.folder, report=self.notes.report)
        raise AssertionError("every export failed")

    async def ended(self, how: str, error: object) -> Ended:
        self.notes.end = f"{how}: {error}"
        await self.note(how)
        return Ended(how, str(error))

    async def filled(self) -> Migration:
        notes, customer = self.notes, self.customer
        if notes.migration:
            migration = self.session.migrations.open(
                notes.migration, external_id=customer.external_id, sheets=notes.sheets
            )
        else:
            await self.note("create")
            migration = await self.session.migrations.create(
                name=customer.external_id, source="HubSpot", external_id=customer.external_id
            )
            notes.migration, notes.sheets = migration.id, migration.sheets
            await self.note("created")
        if not notes.uploaded:
            await migration.upload_all(list(customer.files.items()))
            if customer.connects:
                await migration.connection.save("hubspot", config={"region": "eu"})
            notes.uploaded = True
            await self.note("uploaded")
        return migration

    async def operate(self, migration: Migration, kind: Kind) -> None:
        """Start one operation and wait for its end.

        Store that it ended, that it must be repeated, or that the migration ended.
        """
        notes = self.notes
        notes.tries += 1
        if notes.tries > _TRIES:
            notes.end = f"failed: {kind} did not succeed"
            return await self.note("failed")
        try:
            run = await self.started(migration, kind)
            result = await self.result(run)
        except Conflict as error:
            if "in progress" in str(error):
                raise
            return await self.repeat_from(0, f"refused {kind}")  # the server no longer accepts the preview
        except (RunFailed, RunCanceled) as error:
            if kind == "execute" and await self.wrote_rows(migration):
                notes.end = f"failed: {error}"
                return await self.note("failed")
            return await self.repeat_from(0, f"failed {kind}")
        if notes.end:
            return await self.note("parked")
        if isinstance(result, Report):
            notes.report = result
        elif not isinstance(result, Preview):
            raise AssertionError(result)
        notes.point, notes.run, notes.done = None, "", [*notes.done, kind]
        return await self.note(f"ended {kind}")

    async def repeat_from(self, done: int, entry: str) -> None:
        notes = self.notes
        notes.point, notes.run, notes.done = None, "", notes.done[:done]
        await self.note(entry)

    async def wrote_rows(self, migration: Migration) -> bool:
        for _ in range(40):
            try:
                log = await migration.log()
            except Conflict:
                await asyncio.sleep(30.0)
                continue
            return any(entry.outcome is not None and entry.outcome.rows_written for entry in log.runs)
        return True

    async def started(self, migration: Migration, kind: Kind) -> Run:
        notes = self.notes

        async def noted(point: StartPoint) -> None:
            notes.point = point
            await self.note(f"start {kind}")

        if notes.run and notes.point is not None:
            return migration.run(notes.run, kind=kind, after=notes.point.after, before=notes.point.state)
        since = notes.point
        match kind:
            case "generate":
                run = await migration.generate(
                    noted=noted, since=since, extract_via_api=True if self.customer.connects else None
                )
            case "update":
                run = await migration.update("Drop the bad rows", noted=noted, since=since)
            case "clarify":
                run = await migration.clarify("How many rows?", noted=noted, since=since)
            case "execute":
                run = await migration.execute(noted=noted, since=since)
        notes.run = run.id
        await self.note(f"started {kind}")
        return run

    async def result(self, run: Run) -> Preview | Report | None:
        while True:
            result = await run.wait()
            match result:
                case Questions(questions=()):
                    await run.cancel()
                    self.notes.end = f"parked: {result.reason}"
                    return None
                case Questions(questions=questions):
                    with suppress(Conflict):  # the run has other questions now, or already continued
                        await run.answer({each.id: answer(each) for each in questions})
                case CredentialsNeeded():
                    with suppress(Conflict):
                        await run.submit_credentials(SECRETS)
                case _:
                    return result


def answer(question: Question) -> str:
    labels = [option.label or option.id for option in question.options]
    if DROP in labels or "repeat a value" in (question.prompt or ""):
        return DROP
    return labels[0] if labels else f"Yes to {question.prompt}"


def callers(customers: Sequence[Customer], folder: Path, *, seed: int) -> Process[dict[str, Ended]]:
    """Return a process with a caller for each customer.

    It repeats a call after a server error, after a request without an answer, and after a 403.
    """

    async def one(session: Session, journal: JournalPort, customer: Customer) -> tuple[str, Ended]:
        async with await journal.claim(customer.external_id) as claim:
            for _ in range(20):
                caller = Caller(session, claim, customer, folder / customer.external_id)
                try:
                    return customer.external_id, await caller.run()
                except (ServerError, NoAnswer):
                    pass
                except ApiError as error:
                    if error.status != 403:
                        raise
                await asyncio.sleep(60.0)
            raise AssertionError("the server refused 20 attempts")

    async def work(transport: Transport, journal: JournalPort) -> dict[str, Ended]:
        async with Session(KEY, BASE_URL, transport=transport, rng=Random(seed)) as session:
            return dict(await asyncio.gather(*(one(session, journal, customer) for customer in customers)))

    return work
