"""The API generation "migrations": `session.migrations` and its handles.

A *migration* is one customer's workspace: a workbook with a sheet per template. An agent of the provider reads the
uploaded files, or a live connection, and works in *runs*:

```python
migration = await session.migrations.create(name="Acme", source="HubSpot", external_id="acme-001")
await migration.upload_all(["contacts.csv", "deals.csv"])
run = await migration.generate()
while isinstance(result := await run.wait(), Questions):
    await run.answer({question.id: choose(question) for question in result.questions})
run = await migration.execute()
report = await run.wait()
if isinstance(report, Report):
    files = await migration.download(to="out/acme", report=report)
```

**Operations.** `generate` opens a run and ends with a preview. `update` (a new preview), `clarify` (an answer in the
thread) and `execute` (the import) resume the same run:

```text
generate  queued → running → awaiting_approval        update   running → awaiting_approval
                   ↓    ↑                             clarify  running → completed or awaiting_approval
                   blocked: answer, credentials       execute  running → completed with a report
any of them: → failed | canceled
```

Each returns a `Run` for its own operation. `Run.wait` returns a `Preview`, a `Report`, `Questions` or
`CredentialsNeeded`, or raises `RunFailed` or `RunCanceled`. After `update`, `clarify` or `execute`, a read may still
show the old end of the run; it does not count.

**Nothing happens twice.** A start has no idempotency key. If its response is lost, the run, the log, the preview and
the thread are read, and the start is sent again only if three looks over 30 s show nothing new. An answer is sent
again only if the run still asks exactly the same. What cannot be determined raises `UnknownOutcome`, whose `advice`
says what to do. For a process that may be interrupted: `noted=` receives a `StartPoint` before the start, and
`Migration.recover` finds out with it what happened.

**Waiting.** All tasks that wait for a run share its polls (every 10 s or slower) and one stream of the thread.
`Migration.thread` follows the thread and reconnects.

**Limits.** The account has classes of requests, down to one created migration an hour, and three runs at a time. See
`asyncmig.Limits`; headers of the server take precedence.

**Delivery.** `Migration.download` compares each sheet with the server's own counts. `Downloaded.flagged` says whether
rows with bad cells are in the file: many servers do not separate them. `Downloaded.is_verified` says whether a count
confirms that no row is missing.

**Whole customers.** `asyncmig.migrate` and `asyncmig.Fleet` take `api="migrations"`: they do all of the above for a
customer, keep a journal, and continue after a crash. A preview, a question and a request for credentials park the
customer (`Parked.attention`) unless the options decide.

**Secrets** (signed URLs, credentials, links of exports) appear in no repr, error, event or log.
"""

from asyncmig.migrations.answers import CredentialsNeeded, Questions
from asyncmig.migrations.catalog import Column, Migrations
from asyncmig.migrations.connections import WORKBOOK, SourceConnection
from asyncmig.migrations.expected import Downloaded, Flagged, RowFilter
from asyncmig.migrations.export_jobs import ExportJob
from asyncmig.migrations.knowledge import Knowledge
from asyncmig.migrations.log import Log, LogAudit, LogCovers, LogOutcome, LogRun, LogSheet
from asyncmig.migrations.migration import Difference, Migration
from asyncmig.migrations.operation import StartPoint
from asyncmig.migrations.previews import InvalidCell, Preview, PreviewSheet
from asyncmig.migrations.runs import Result, Run
from asyncmig.migrations.starts import Noted, active_run_id
from asyncmig.migrations.thread import Event, Include
from asyncmig.migrations.uploads import ToUpload, Uploaded
from asyncmig.migrations.wire import (
    Connection,
    CredentialRequest,
    ExportState,
    Guidance,
    GuidanceLink,
    Kind,
    KnowledgeText,
    Option,
    Pin,
    Question,
    Report,
    RunState,
    Sheet,
    Source,
    StoredFile,
    Template,
)

__all__ = [
    "WORKBOOK",
    "Column",
    "Connection",
    "CredentialRequest",
    "CredentialsNeeded",
    "Difference",
    "Downloaded",
    "Event",
    "ExportJob",
    "ExportState",
    "Flagged",
    "Guidance",
    "GuidanceLink",
    "Include",
    "InvalidCell",
    "Kind",
    "Knowledge",
    "KnowledgeText",
    "Log",
    "LogAudit",
    "LogCovers",
    "LogOutcome",
    "LogRun",
    "LogSheet",
    "Migration",
    "Migrations",
    "Noted",
    "Option",
    "Pin",
    "Preview",
    "PreviewSheet",
    "Question",
    "Questions",
    "Report",
    "Result",
    "RowFilter",
    "Run",
    "RunState",
    "Sheet",
    "Source",
    "SourceConnection",
    "StartPoint",
    "StoredFile",
    "Template",
    "ToUpload",
    "Uploaded",
    "active_run_id",
]
