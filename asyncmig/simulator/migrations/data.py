"""The sources and templates of a simulated account, and customers that are generated from a seed.

The customers are a manifest, CSV files, rules that answer the agent's questions, and the expected result of each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from asyncmig.simulator.migrations.scripts import DROP, KEEP, Block, Question, Script
from asyncmig.simulator.migrations.tables import Column, Schema
from asyncmig.simulator.server.tables import MANIFEST_HEADER, Rows, csv_text

__all__ = ["ANSWERS", "SCHEMAS", "SOURCES", "Plan", "generate"]

SOURCES = ("HubSpot", "Salesforce (AU)", "Pipedrive")
"""The names of the account's sources."""
SCHEMAS = (
    Schema(
        slug="companies",
        name="Companies",
        description="Organisations",
        columns=(
            Column(name="Name", synonyms=("Company", "Account Name"), required=True, unique=True),
            Column(name="City", synonyms=("Town", "Billing City")),
            Column(name="Notes", synonyms=("Remarks",)),
        ),
    ),
    Schema(
        slug="contacts",
        name="Contacts",
        columns=(
            Column(
                name="Email",
                description="The address that a person reads",
                synonyms=("E-mail", "Email Address"),
                required=True,
                unique=True,
                strict_rule=r"^[^@\s]+@[^@\s]+\.[a-z]+$",
            ),
            Column(name="First Name", synonyms=("Given Name",)),
            Column(name="Last Name", synonyms=("Surname", "Family Name"), required=True),
            Column(name="Phone", synonyms=("Telephone", "Phone Number")),
        ),
    ),
    Schema(
        slug="deals",
        name="Deals",
        columns=(
            Column(name="Title", synonyms=("Deal Name", "Opportunity"), required=True),
            Column(name="Stage", synonyms=("Deal Stage",), strict_rule="^(lead|qualified|won|lost)$"),
            Column(name="Amount", synonyms=("Value", "Deal Value")),
            Column(
                name="Contact",
                synonyms=("Contact E-mail", "Primary Contact"),
                link_rule=({"templateId": "contacts", "columnName": "Email"},),
            ),
        ),
    ),
)
"""The templates of the account."""
ANSWERS = f"""# Rules for `asyncmig run --answers`: the first one that matches the text of a question answers it.
[[answer]]
question = "repeat a value of Email"
source = "HubSpot"
choose = "{KEEP.lower()}"

[[answer]]
question = "repeat a value of Email"
choose = "{DROP}"

[[answer]]
question = "(?i)which currency"
choose = "EUR"
"""
"""The content of `answers.toml`."""
_CURRENCY = Question(
    text="Which currency have the amounts?", options=("US Dollar", "EUR"), allow_custom=False
)
_FIRST = ("Ada", "Zoë", "José", "Grace", "Søren", "Omar", "Yuki", "Priya")
_LAST = ("Lovelace", "Müller", "García", "O'Brien", "Öztürk", "Hopper", "Sato", "Iyer")
_TRADES = ("Logistics", "Bakery", "Robotics", "Clinics", "Foods", "Studio")
_HEADERS = (
    ("Email", "First Name", "Last Name", "Phone"),
    ("E-mail", "Given Name", "Surname", "Telephone"),
    ("Email Address", "First Name", "Family Name", "Phone Number"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The expected result of a customer."""

    external_id: str
    outcome: str = "delivered"
    """delivered or failed."""
    reason: str = ""
    rows_in: int
    rows: int = 0
    """Rows of the delivered sheet."""
    flagged: int = 0
    """Rows of it with a bad cell."""
    questions: int = 0


def generate(folder: Path, *, customers: int, seed: int) -> tuple[list[Plan], Mapping[str, Script]]:
    """Write `customers.csv`, `answers.toml` and a folder for each customer. Returns plans and the agent's scripts.

    The same seed writes the same bytes.
    """
    rng = Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answers.toml").write_text(ANSWERS, encoding="utf-8")
    broken = rng.randrange(customers)
    plans: list[Plan] = []
    scripts: dict[str, Script] = {}
    manifest: Rows = []
    for n in range(customers):
        name = f"{rng.choice(_LAST)} {rng.choice(_TRADES)} {n + 1}"
        external_id, source = f"cust-{n + 1:04d}", rng.choice(SOURCES)
        manifest.append([external_id, name, source, "Contacts", f"{external_id}/*.csv"])
        asks_currency = n % 4 == 1 and n != broken
        if asks_currency:
            scripts[external_id] = Script(blocks={"generate": [Block(questions=(_CURRENCY,))]})
        path = folder / external_id / "contacts.csv"
        path.parent.mkdir(exist_ok=True)
        plans.append(_customer(path, source, rng, is_broken=n == broken, asks_currency=asks_currency))
    (folder / "customers.csv").write_bytes(csv_text(MANIFEST_HEADER, manifest).encode())
    return plans, scripts


def _customer(path: Path, source: str, rng: Random, *, is_broken: bool, asks_currency: bool) -> Plan:
    """Write the file of a customer, and return its plan."""
    good, bad = rng.randrange(10, 80), rng.choice((0, 0, 1, 3))
    doubles = rng.choice((0, 0, 2))
    rows = [
        [
            f"person{n}@example.com",
            rng.choice(_FIRST),
            rng.choice(_LAST),
            f"+49 30 {rng.randrange(10**6):06d}",
        ]
        for n in range(good)
    ]
    rows += [[f"person{good + n} at example", "Ada", "Byron", ""] for n in range(bad)]
    rows += [[f"person{good + bad + n}@example.com", "Ada", "", ""] for n in range(bad)]
    rows += [["person0@example.com", "Ada", "Twice", ""] for _ in range(doubles)]
    end = rng.choice(("\n", "\r\n"))
    text = csv_text(rng.choice(_HEADERS), rows, end=end)
    if is_broken:
        path.write_bytes(f"{text}cafe@example.com,Café,Last,\n".encode("cp1252", "replace"))
        return Plan(
            external_id=path.parent.name,
            outcome="failed",
            reason="is not UTF-8 text",
            rows_in=len(rows) + 1,
        )
    path.write_bytes(text.encode())
    kept = doubles if source == "HubSpot" else 0  # the rules keep them for this source only
    return Plan(
        external_id=path.parent.name,
        rows_in=len(rows),
        rows=good + 2 * bad + kept,
        flagged=2 * bad + kept,
        questions=bool(doubles) + asks_currency,
    )
