"""Customers of the generation "migrations", a fleet that migrates them, and checks of its outcomes."""

import csv
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random

from inprocess import BASE_URL, KEY
from mortal import Process

from asyncmig import (
    Answer,
    Approve,
    Credentials,
    Custom,
    Decision,
    Fleet,
    LiveSource,
    Outcome,
    Parked,
    Session,
    Spec,
)
from asyncmig._io.transport import Transport
from asyncmig.journal import JournalPort
from asyncmig.simulator.migrations import DROP, Block, Question, Script, World
from asyncmig.simulator.migrations.tables import find_flaws

from .careful import Ended

HEADER = "E-mail,Given Name,Surname,Phone\r\n"
PEOPLE = "".join(f"p{n}@x.org,Ada,L{n},1\r\n" for n in range(6))
DEALS = "Deal Name,Stage,Amount,Contact\r\nBig,won,1,p1@x.org\r\nOdd,lost,2,nobody@x.org\r\n"
FILES: Mapping[str, Mapping[str, str]] = {
    "plain": {"contacts": HEADER + PEOPLE},
    "flawed": {"contacts": HEADER + PEOPLE + "bad,Cy,N,\r\n", "deals": DEALS},
    "doubled": {"contacts": HEADER + PEOPLE + "p1@x.org,Ada,L1,1\r\n" * 2},
    "asks": {"contacts": HEADER + PEOPLE},
    "live": {},
}
SCRIPTS = {
    "asks": Script(
        blocks={
            "generate": [
                Block(
                    questions=(
                        Question(text="Why?", options=("A", "B"), allow_custom=False),
                        Question(text="How?"),
                    )
                ),
                Block(questions=(Question(text="Why not?", options=("A", "C")),)),
            ],
            "execute": [Block(questions=(Question(text="Replace the old rows?", options=("Yes", "No")),))],
        }
    )
}


def specs(folder: Path) -> dict[str, Spec]:
    """Write the files of all customers. Return their specifications by name."""
    found: dict[str, Spec] = {}
    for name, contents in FILES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for stem, text in contents.items():
            (folder / name / f"{stem}.csv").write_bytes(text.encode())
        found[name] = Spec(
            external_id=name,
            name=name,
            source="HubSpot",
            files=tuple(sorted((folder / name).iterdir())),
            connection=None if contents else LiveSource(source_key="hubspot"),
        )
    return found


async def decide(parked: Parked) -> Decision | None:
    """Decide as a person does: approve previews, send credentials, and answer questions."""
    attention = parked.attention
    if attention.kind == "preview":
        return Approve()
    if attention.kind == "credentials":
        return Credentials({"api_token": "right"})
    if not attention.questions:
        return None
    answers: dict[str, str | Custom] = {}
    for question in attention.questions:
        labels = {option.label: option.id for option in question.options}
        if "repeat a value" in (question.prompt or ""):
            answers[question.id] = labels.get(DROP) or Custom(DROP)
        else:
            answers[question.id] = next(iter(labels.values()), Custom(f"Yes to {question.prompt}"))
    return Answer(answers)


def fleet(
    customers: list[Spec], out: Path, *, seed: int = 1, limits: str | None = None
) -> Process[dict[str, Outcome]]:
    """Return a process with a fleet, as `asyncmig run` uses it."""

    async def process(transport: Transport, journal: JournalPort) -> dict[str, Outcome]:
        async with (
            Session(KEY, BASE_URL, transport=transport, rng=Random(seed), limits=limits) as session,
            Fleet(session, journal=journal, to=out, api="migrations", decide=decide, retries=2) as fleet,
        ):
            return {outcome.external_id: outcome async for outcome in fleet.run(customers)}

    return process


def ended(outcome: Outcome) -> Ended:
    """Convert an outcome to the result type of `careful.py`."""
    how = type(outcome).__name__.lower()
    return Ended(how, getattr(outcome, "error", ""), getattr(outcome, "files", ()))


def check_delivered(external_id: str, delivered: Ended, world: World) -> None:
    """Check that the number of rows in each file fits the server's workbook and the flags of the file."""
    sheets = world.migration(external_id).grids()
    rows = {sheet.schema.slug: len(sheet.rows) for sheet in sheets}
    bad = Counter(slug for slug, _ in {(flaw.slug, flaw.row) for flaw in find_flaws(sheets)})
    files = {file.slug: file for file in delivered.files}
    assert {slug for slug, count in rows.items() if count} <= files.keys()
    for slug, file in files.items():
        with open(file.path, encoding="utf-8", newline="") as text:
            assert len(list(csv.reader(text))) - 1 == file.rows
        clean = rows[slug] - bad[slug]
        assert file.rows <= rows[slug]
        assert file.rows in (clean, rows[slug]) or not file.is_verified
        if file.flagged == "none":
            assert file.rows == clean
        if file.flagged == "included":
            assert file.rows == rows[slug] or not file.is_verified
    if external_id == "doubled" and len(sheets) > 1:
        assert sum(rows.values()) == 6
