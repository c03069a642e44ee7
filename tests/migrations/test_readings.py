"""Open points of the contract, or settled for the client: each reading of the simulator, and the client's behaviour.

`TABLE` lists the readings. A tour of the client's calls passes under each of them, and the verdict has no faults.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from random import Random

import pytest
from inprocess import BASE_URL, KEY, InProcess
from mortal import run

from asyncmig import (
    Conflict,
    Delivered,
    MemoryJournal,
    RunFailed,
    ServerError,
    Session,
    Spec,
    migrate,
)
from asyncmig.migrations import Migration, Preview, Questions, Report, Run
from asyncmig.simulator import RunDurations
from asyncmig.simulator.migrations import (
    REFUSALS,
    SETTLED,
    SILENCES,
    Block,
    Limits,
    Question,
    Script,
    Variants,
    World,
)

HEADER = "E-mail,Given Name,Surname,Phone\r\n"
CONTACTS = HEADER + "".join(f"p{n}@x.org,Ada,L{n},1\r\n" for n in range(6)) + "bad,Cy,N,\r\n"
WHY = Question(text="Why?", options=("A", "B"), allow_custom=False)
SCRIPT = Script(
    blocks={
        "generate": [
            Block(questions=(WHY, Question(text="How?"))),
            Block(questions=(Question(text="Who?"),)),
        ],
        "execute": [Block(questions=(Question(text="Replace?", options=("Yes", "No")),))],
    }
)
# The number of the open point (- for "Settled for this client"), the simulator's choice, and what the client does.
TABLE = """
|  1 | limits | starts from the classes; the session's `limits` raise them |
|  1 | window | counts requests as any window may count them |
|  1 | phase | the same |
|  1 | rejects_count | waits instead of trying: it never sends a request to test an hourly limit |
|  1 | replays_count | charges a create that found a migration |
|  1 | concurrency_counts | charges a start that was refused because all run slots were in use |
|  1 | create_costs_write | charges a create to both classes |
|  1 | limit_headers | obeys them where they come; without them waits one window |
|  1 | concurrency_wait | waits `Retry-After`, or 1, 2, 5, 10, 20, 20, ... minutes, or until one of its runs ends |
|  1 | concurrency_list | counts the listed runs that are not its own, or one |
|  1 | listed_ids | never compares the ids |
|  1 | foreign_runs | does not use their run slots |
|  2 | knowledge_class | charges reads of knowledge and connections as writes |
|  2 | cancel_class | cancels in the urgent lane, as a read |
|  2 | files_class | charges a list of files as a read and a write |
|  3 | old_end | accepts an end only after newer evidence: the status running, an event, another report, the log |
|  3 | old_block | does not answer the same block again for 30 s |
|  3 | execute_id | takes the id of the answer; after a lost answer that of the log |
|  4 | after_clarify | both end a clarify; execute starts from both |
|  5 | blocked_stream | reads the run when the stream ends, and reconnects while it waits |
|  5 | early_done | confirms `done` by a read |
|  5 | stream_done | reconnects after the last sequence; polls meanwhile |
|  5 | framing | decodes comments, CRLF, several data lines; drops a frame that was cut |
|  5 | stream_errors | reconnects |
|  6 | partial_answers | answers all questions or none |
|  6 | question_ids | compares the texts of a block, not its ids |
|  6 | replies | determines from the run, not from the thread, whether it was answered |
|  7 | free_text | sends only labels where a question takes only its options |
|  7 | options | sends any text where no option is shown |
|  7 | block_reason | goes by the questions; parks for a person after an unknown reason without questions |
|  8 | blocked_lives | raises `RunFailed` when the server ends it |
|  8 | preview_lives | raises `RunFailed`; a later execute raises `Conflict` |
|  8 | retention | raises `NotFound` |
|  9 | second_execute | executes again only when asked; the log says whether the old rows remain |
|  9 | second_generate | generates again only when asked |
| 10 | existing | returns it with `is_new` False and its `differences` |
| 10 | existing_file | lists the files before it uploads |
| 11 | unused_urls_count | asks only for the URLs that it needs |
| 11 | file_names | matches URLs by position where names differ, and listed files by storage path |
| 11 | url_lives | asks for URLs 25 at a time, and for a new one after a refusal |
| 12 | lag | reads again for 30 s before it accepts a 404 |
| 12 | preview_after_execute | keeps the sheets that the create named |
| 13 | filter | counts rows; says whether flagged rows are in the file; after a 400 asks without it |
| 13 | total_records | compares with the report; without either the file is unverified |
| 14 | cut_downloads | compares counts and gzip trailers, and fetches again |
| 14 | before_execute | raises `NotFound` after three reads, or delivers an empty sheet |
| 15 | drift | reads numbers from texts; ignores unknown fields; fills absent ones |
| 15 | per_sheet | takes a sheet that is not listed as empty only if the sum says so |
| 15 | template_names | trusts no count by name where names repeat |
| 15 | coverage | passes it on as it came |
| 15 | strange_status | treats it as in progress |
| 16 | cell_row | understands each |
| 16 | cell_column | understands each |
| 16 | cell_reason | understands each |
| 16 | first_row | passes the number on |
| 17 | cancel_ended | reads the run and returns its end |
| 17 | cancel_takes | reads the run until it has ended; its slot is in use until then |
| 18 | delete_missing | returns False |
| 18 | update_status | accepts any 2xx |
| 18 | omitted_fields | sends only the given fields; the answer has the stored ones |
| 19 | bare_conflict | raises `Conflict`; after a lost start it looks at the log, the preview and the thread |
| 20 | download_url | follows it without the key, over https |
| 20 | late_url | reads the job again for 30 s |
| 21 | errors | branches on the status |
| 21 | retry_after | compares a date with the `Date` of the answer |
| 21 | proxy_403 | raises it, with the result of one cheap read |
|  - | request_input | reads the questions of a block from the run |
|  - | log_at_preview | reads the status in the 409 |
|  - | log_status | takes it as the run's or the migration's |
|  - | log_entries | matches by run id and kind, or by an outcome |
|  - | cancel_at_preview | reads the run and returns its state |
|  - | compressed_sheets | fetches the sheet through an export job |
|  - | listens_after | reads the run; sends the answer again if it still asks the same |
|  - | zombies | raises `RunFailed` when the server ends it |
|  - | expired_job | starts another job |
|  - | failing_jobs | starts another job once, then raises `RunFailed` |
|  - | sample | applies an approval to the preview of its run and its events, whatever rows are shown |
"""
ROWS = [
    (number, name) for number, name in re.findall(r"^\| +(\d+|-) \| (\w+) \| .+ \|$", TABLE, re.MULTILINE)
]
CHOICES = {**{str(number): fields for number, fields in SILENCES.items()}, "-": SETTLED}
RANDOM = ("proxy_403", "zombies")
"""Readings that make any call or any run fail; `tests/faults/test_migrations_seeds.py` tests them."""
READINGS = [
    (number, name, value)
    for number, fields in CHOICES.items()
    for name, values in fields.items()
    for value in values[1:]
    if name not in RANDOM
]


def test_the_table_has_every_choice_of_the_simulator_once() -> None:
    assert len(ROWS) == len(TABLE.strip().splitlines())
    assert [(number, name) for number, fields in CHOICES.items() for name in fields] == ROWS


async def finished(run: Run) -> Preview | Report | None:
    """Answer the questions of the run until it ends; return None if it is blocked without questions."""
    while True:
        match await run.wait():
            case Questions(questions=()):
                return None
            case Questions(questions=questions):
                texts = {each.id: [option.label or "" for option in each.options] for each in questions}
                await run.answer({each: labels[0] if labels else "Because" for each, labels in texts.items()})
            case Preview() | Report() as result:
                return result
            case other:
                raise AssertionError(other)


async def exported(migration: Migration, path: Path) -> Path:
    for _ in range(20):
        try:
            return await (await migration.export_job("contacts")).download(path)
        except RunFailed:
            continue
    raise AssertionError


async def tour(session: Session, world: World, folder: Path) -> None:
    """Make the calls of one customer from creation to download, and check their results under any reading."""
    variants = world.variants
    migration = await session.migrations.create(
        name="Acme", source="HubSpot", external_id="acme", templates=["contacts", "deals"]
    )
    assert migration.is_new == (variants.existing == "none")
    assert bool(migration.differences) == (variants.existing in ("renamed", "other-templates"))
    connection = migration.connection
    assert await connection.delete("hubspot") is False
    await connection.save("hubspot", config={"region": "eu"})
    await connection.save("hubspot", selected_streams=["contacts"])
    assert await connection.delete("hubspot") is True
    await migration.knowledge.update(lambda text: f"{text}x")
    for _ in range(2):  # the second upload finds the file
        await migration.upload_all([("my contacts.csv", CONTACTS.encode())])
    run = await migration.generate()
    assert (await run.cancel()).status == "canceled"
    run = await migration.generate()
    preview = await finished(run)
    if preview is None:
        assert variants.block_reason == "unknown"
        assert (await run.cancel()).status == "canceled"
        return
    assert isinstance(preview, Preview)
    if variants.existing == "other-templates":
        return
    assert preview.invalid_cells == 1
    clarified = await migration.clarify("How many rows?")
    assert isinstance(await finished(clarified), Preview)
    assert "Every row" in await clarified.messages()
    run = await migration.execute()
    report = await finished(run)
    assert isinstance(report, Report)
    assert (report.inserted, report.invalid_rows) == (7, 1)
    assert (await run.cancel()).status == "completed"
    (contacts,) = [file for file in await migration.download(to=folder, report=report) if file.rows]
    if variants.filter == "honoured" and not variants.compressed_sheets:
        assert (contacts.rows, contacts.flagged) in ((6, "none"), (6, "unknown"))
    else:
        assert (contacts.rows, contacts.flagged) in ((7, "included"), (7, "unknown"))
    assert (
        len((await exported(migration, folder / "export.csv")).read_text(encoding="utf-8").splitlines()) == 8
    )
    log = await migration.log()
    assert log.runs[-1].outcome is not None
    assert log.runs[-1].outcome.rows_written == 7
    assert (await migration.log_markdown()).startswith("# ")
    assert [event.type for event in await migration.events()].count("completed") >= 1


@pytest.mark.parametrize(("number", "name", "value"), READINGS, ids=str)
def test_a_tour_passes_under_each_reading(number: str, name: str, value: object, tmp_path: Path) -> None:
    is_about_limits = number in ("1", "2")
    variants = Variants(**{name: value})  # type: ignore[arg-type]
    if name == "existing_file":
        variants = Variants(existing="same", existing_file=True)
    world = World(
        key=KEY,
        seed=3,
        limits=None if is_about_limits else Limits.parse("per-endpoint"),
        pace=RunDurations(queued=2.0, base=30.0, per_row=0.0, sigma=0.0),
        variants=variants,
        scripts={"acme": SCRIPT},
    )

    async def main() -> None:
        transport = InProcess(world, rng=Random(3))
        async with Session(
            KEY,
            BASE_URL,
            transport=transport,
            rng=Random(3),
            limits=None if is_about_limits else "per-endpoint",
        ) as session:
            await tour(session, world, tmp_path)
        assert not transport.foreign

    run(main())
    verdict = str(world.verdict(10.0**6))
    expected: Callable[[str], bool] = {
        "knowledge_class": lambda text: text in ("no faults", "1 requests over the rate limit (429)"),
    }.get(name, lambda text: text == "no faults")
    assert expected(verdict), verdict


# Errors that the contract names, the result of each call, and the outcome of a customer.
REFUSED = """
                          create    knowledge log         customer
region=closed             Conflict  ok        ok          Failed
source_names=ambiguous    Conflict  Conflict  ok          Failed
log=unavailable           ok        ok        ServerError Delivered
"""
REFUSED_ROWS = [line.split() for line in REFUSED.strip("\n").splitlines()[1:]]
ERRORS: Mapping[str, type[Exception]] = {"Conflict": Conflict, "ServerError": ServerError}


def test_the_table_has_every_error_of_the_simulator_once() -> None:
    known = [f"{name}={value}" for name, values in REFUSALS.items() for value in values[1:]]
    assert [row[0] for row in REFUSED_ROWS] == known


async def check_result(expected: str, call: Awaitable[object]) -> None:
    """Check that a call has the result of the table."""
    if expected == "ok":
        await call
        return
    with pytest.raises(ERRORS[expected]):
        await call


@pytest.mark.parametrize(("error", "create", "knowledge", "log", "outcome"), REFUSED_ROWS, ids=str)
def test_each_call_and_customer_has_the_listed_result_under_an_error(
    error: str, create: str, knowledge: str, log: str, outcome: str, tmp_path: Path
) -> None:
    name, _, value = error.partition("=")
    world = World(
        key=KEY,
        seed=3,
        limits=Limits.parse("per-endpoint"),
        pace=RunDurations(queued=2.0, base=30.0, per_row=0.0, sigma=0.0),
        variants=Variants(**{name: value}),  # type: ignore[arg-type]
    )
    path = tmp_path / "contacts.csv"
    path.write_text(CONTACTS, encoding="utf-8")
    spec = Spec(external_id="acme", name="Acme", source="HubSpot", files=(path,))

    async def main() -> None:
        transport = InProcess(world, rng=Random(3))
        async with Session(
            KEY, BASE_URL, transport=transport, rng=Random(3), limits="per-endpoint"
        ) as session:
            journal, to = MemoryJournal(), tmp_path / "out"
            ended = await migrate(session, spec, journal=journal, to=to, api="migrations", decide="approve")
            assert type(ended).__name__ == outcome, ended
            assert transport.requests["POST /migrations"] == 1
            migrations = session.migrations
            await check_result(create, migrations.create(name="Acme", source="HubSpot", external_id="acme"))
            await check_result(knowledge, migrations.knowledge("HubSpot").update(lambda text: f"{text}x"))
            if isinstance(ended, Delivered):
                await check_result(log, migrations.open(ended.ids["migration"]).log())
                assert any("the log could not be read" in note for note in ended.notes)
            else:
                assert "409" in ended.error  # type: ignore[union-attr]

    run(main())
    assert str(world.verdict(10.0**6)) == "no faults"
