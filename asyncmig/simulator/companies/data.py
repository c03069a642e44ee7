"""Generate messy customers from a seed: a manifest, two or three CSV files for each, and the expected result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from asyncmig.simulator.companies.tables import Column, Schema
from asyncmig.simulator.server.tables import MANIFEST_HEADER, Rows, csv_text

__all__ = ["SCHEMAS", "SOURCES", "Plan", "generate"]

SOURCES = {
    "5b0c3a52-0f5e-4c62-9a11-6d1f0a7e1c01": "HubSpot",
    "5b0c3a52-0f5e-4c62-9a11-6d1f0a7e1c02": "Salesforce",
    "5b0c3a52-0f5e-4c62-9a11-6d1f0a7e1c03": "Pipedrive",
}
"""The sources of a simulated account: ids by name."""
_COMPANIES, _CONTACTS, _DEALS = (f"7a9d1e40-33c1-4b8e-8e5f-2b9c4d6f0a0{n}" for n in (1, 2, 3))
_STAGES = ("lead", "qualified", "won", "lost")
SCHEMAS = (
    Schema(
        id=_COMPANIES,
        name="Companies",
        columns=(
            Column(name="Name", synonyms=("Company", "Account Name"), required=True, unique=True),
            Column(name="City", synonyms=("Town", "Billing City")),
            Column(name="Notes", synonyms=("Remarks",)),
        ),
    ),
    Schema(
        id=_CONTACTS,
        name="Contacts",
        columns=(
            Column(
                name="Email",
                synonyms=("E-mail", "Email Address"),
                required=True,
                unique=True,
                pattern=r"[^@\s]+@[^@\s]+\.[a-z]+",
            ),
            Column(name="First Name", synonyms=("Given Name",)),
            Column(name="Last Name", synonyms=("Surname", "Family Name"), required=True),
            Column(name="Phone", synonyms=("Telephone", "Phone Number")),
        ),
    ),
    Schema(
        id=_DEALS,
        name="Deals",
        columns=(
            Column(name="Title", synonyms=("Deal Name", "Opportunity"), required=True),
            Column(name="Stage", synonyms=("Deal Stage",), pattern="|".join(_STAGES), fallback="lead"),
            Column(name="Amount", synonyms=("Value", "Deal Value")),
            Column(name="Contact", synonyms=("Contact E-mail", "Primary Contact"), link=(_CONTACTS, "Email")),
        ),
    ),
)
"""The templates of a simulated account."""
_FIRST = (
    "Ada",
    "Zoë",
    "José",
    "Nguyễn",
    "Łukasz",
    "Grace",
    "Søren",
    "Amélie",
    "Omar",
    "Yuki",
    "Priya",
    "Chloé",
)
_LAST = (
    "Lovelace",
    "Müller",
    "García",
    "O'Brien",
    "Öztürk",
    "Hopper",
    "D'Angelo",
    "Kowalski",
    "Sato",
    "Iyer",
)
_CITIES = ("Berlin", "São Paulo", "Kraków", "Lyon", "Austin, TX", "Malmö", "東京", "Cork")
_TRADES = ("Logistics", "Bakery", "Robotics", "Clinics", "Foods", "Studio", "Freight", "Energy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The expected result of a customer. Row counts are those of `filter=valid`, by sheet."""

    external_id: str
    outcome: str
    """delivered or failed."""
    reason: str
    rows_in: int
    valid: dict[str, int]
    """Rows if the run completes without a question, with its bad rows flagged."""
    valid_after_patch: dict[str, int]
    """Rows if the run parks and the proposed patch is approved."""


@dataclass(slots=True, kw_only=True)
class _Sheet:
    """Rows being generated, and how many are bad in which way."""

    schema: Schema
    rows: Rows
    dropped: int = 0
    """Rows that a patch deletes: duplicates, and those that lack a required cell."""
    mended: int = 0
    """Rows that a patch makes valid."""
    kept: int = 0
    """Rows that stay bad."""

    @property
    def valid(self) -> int:
        return len(self.rows) - self.dropped - self.mended - self.kept

    @property
    def valid_after_patch(self) -> int:
        return len(self.rows) - self.dropped - self.kept


def generate(folder: Path, *, customers: int = 40, seed: int = 1) -> list[Plan]:
    """Write `folder/customers.csv` and a folder of files for each customer; return the expected result of each.

    The same seed writes the same bytes.
    """
    rng = Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    broken = set(rng.sample(range(customers), k=max(1, customers // 25)))
    plans: list[Plan] = []
    manifest: Rows = []
    for n in range(customers):
        name = f"{rng.choice(_LAST)} {rng.choice(_TRADES)} {n + 1}"
        external_id, source = f"cust-{n + 1:04d}", rng.choice(list(SOURCES.values()))
        manifest.append([external_id, name, source, "", f"{external_id}/*.csv"])
        plans.append(_customer(folder / external_id, external_id, rng, broken=n in broken))
    (folder / "customers.csv").write_bytes(csv_text(MANIFEST_HEADER, manifest).encode())
    return plans


def _customer(folder: Path, external_id: str, rng: Random, *, broken: bool) -> Plan:
    folder.mkdir(exist_ok=True)
    size = min(400, int(rng.lognormvariate(3.6, 0.8)) + 8)
    flaws = rng.choice((0.0, 0.02, 0.08, 0.15))
    companies = _companies(max(4, size // 3), flaws, rng)
    contacts, emails = _contacts(size, flaws, rng)
    sheets = [companies, contacts]
    if rng.random() < 0.6:
        sheets.append(_deals(max(4, size // 2), flaws, emails, rng))
    bad = rng.choice(sheets) if broken else None
    for sheet in sheets:
        encoding = "cp1252" if sheet is bad else "utf-8"
        if sheet is bad:
            sheet.rows[-1][1] = "café"
        (folder / f"{sheet.schema.name.lower()}.csv").write_bytes(_render(sheet, rng, encoding))
    return Plan(
        external_id=external_id,
        outcome="failed" if broken else "delivered",
        reason="is not UTF-8 text" if broken else "",
        rows_in=sum(len(sheet.rows) for sheet in sheets),
        valid={sheet.schema.name: sheet.valid for sheet in sheets},
        valid_after_patch={sheet.schema.name: sheet.valid_after_patch for sheet in sheets},
    )


def _spoil(
    sheet: _Sheet,
    share: float,
    rng: Random,
    ways: Sequence[Callable[[list[str]], list[str]]],
    counts: Sequence[str],
) -> None:
    """Add bad rows with one flaw each: `ways` turn a good row into a bad one, `counts` count the results."""
    good = [list(row) for row in sheet.rows]
    for _ in range(round(share * len(good))):
        way = rng.randrange(len(ways))
        sheet.rows.append(ways[way](list(rng.choice(good))))
        setattr(sheet, counts[way], getattr(sheet, counts[way]) + 1)


def _companies(count: int, flaws: float, rng: Random) -> _Sheet:
    rows = [
        [
            f"{rng.choice(_LAST)} {rng.choice(_TRADES)} {n}",
            rng.choice(_CITIES),
            rng.choice(("", 'says "hi"', "a\nb")),
        ]
        for n in range(count)
    ]
    sheet = _Sheet(schema=SCHEMAS[0], rows=rows)
    _spoil(sheet, flaws, rng, (lambda row: row, lambda row: ["", *row[1:]]), ("dropped", "dropped"))
    return sheet


def _contacts(count: int, flaws: float, rng: Random) -> tuple[_Sheet, list[str]]:
    rows = [
        [
            f"person{n}@example.com",
            rng.choice(_FIRST),
            rng.choice(_LAST),
            f"+49 30 {rng.randrange(10**6):06d}",
        ]
        for n in range(count)
    ]
    emails = [row[0] for row in rows]
    sheet = _Sheet(schema=SCHEMAS[1], rows=rows)
    numbers = iter(range(count, 10**9))
    _spoil(
        sheet,
        flaws,
        rng,
        (
            lambda row: row,
            lambda row: [f"person{next(numbers)}@example.com", row[1], "", row[3]],
            lambda row: [f"person{next(numbers)} at example", *row[1:]],
        ),
        ("dropped", "dropped", "kept"),
    )
    return sheet, emails


def _deals(count: int, flaws: float, emails: list[str], rng: Random) -> _Sheet:
    rows = [
        [f"Deal {n}", rng.choice(_STAGES), str(rng.randrange(100, 90_000)), rng.choice(emails)]
        for n in range(count)
    ]
    sheet = _Sheet(schema=SCHEMAS[2], rows=rows)
    _spoil(
        sheet,
        flaws,
        rng,
        (
            lambda row: [row[0], "somewhen", *row[2:]],
            lambda row: [*row[:3], "nobody@nowhere.example"],
            lambda row: ["", *row[1:]],
        ),
        ("mended", "kept", "dropped"),
    )
    return sheet


def _render(sheet: _Sheet, rng: Random, encoding: str) -> bytes:
    """Write the rows as another system would: other headers, other line ends, sometimes a byte order mark."""
    end = rng.choice(("\n", "\r\n"))
    header = [rng.choice((column.name, *column.synonyms)) for column in sheet.schema.columns]
    text = csv_text(header, sheet.rows, end=end)
    mark = "\ufeff" if encoding == "utf-8" and rng.random() < 0.3 else ""
    return (mark + text).encode(encoding, "replace")
