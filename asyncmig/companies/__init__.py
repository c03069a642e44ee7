"""The API generation "companies": `session.companies` and its handles.

A *company* holds one customer's data. The provider's published logic imports files into it at once:

```python
async with asyncmig.Session() as session:
    source = await session.companies.source("HubSpot")
    company = await session.companies.create(name="Acme", source=source.id, external_id="acme-001")
    run = await company.imports.start(files=[Path("contacts.csv"), Path("deals.csv")])
    await run.wait()
    if run.needs_attention and not run.needs_attention.is_destructive:
        await run.approve()
    files = await company.download(to=Path("out/acme-001"))
```

**Runs.** An import (`ImportRun`) and an export to the customer's destination (`ExportRun`) take minutes to an hour.
`wait` ends when the run has ended or asks a question. A company has at most one import at a time.

**Nothing happens twice.** The start of an import or an export carries an idempotency key, so it can be repeated. A
company is known by its `external_id`. `create` raises `UnknownOutcome` if a response was lost and the company may or
may not exist; the error's `advice` says how to find it.

**Delivery.** `Company.download` compares each sheet with the report of the import. A file is complete or does not
exist.

**Export.** `Company.export` writes the first row of each template to the destination (the canary), and the rest only
if the canary lost nothing. The report in its `ExportOutcome` lists failed and hollow writes.

**Whole customers.** `asyncmig.migrate` and `asyncmig.Fleet` do all of the above for a customer, keep a journal, and
continue after a crash.
"""

from asyncmig.companies.catalog import Companies
from asyncmig.companies.company import Company
from asyncmig.companies.exports import Destination, ExportOutcome, ExportRun, Exports, ExportStage
from asyncmig.companies.import_run import ImportRun
from asyncmig.companies.imports import Imports
from asyncmig.companies.uploads import Uploaded
from asyncmig.companies.wire import (
    Connection,
    ExportReport,
    ExportState,
    ImportState,
    Sheet,
    Source,
    Template,
)

__all__ = [
    "Companies",
    "Company",
    "Connection",
    "Destination",
    "ExportOutcome",
    "ExportReport",
    "ExportRun",
    "ExportStage",
    "ExportState",
    "Exports",
    "ImportRun",
    "ImportState",
    "Imports",
    "Sheet",
    "Source",
    "Template",
    "Uploaded",
]
