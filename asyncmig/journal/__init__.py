"""Journal and resume: a durable record of what was done for each customer.

A process that was killed at any point resumes from its journal. Before each request that changes something at the
server, the journal records the intent, with the exact body and the idempotency key. After the request, it records the
result. When the same call runs again, it repeats only what is safe to repeat. In the API generation `companies`:

- Killed before the create request: it creates the company.
- Killed between the create request and its response: it sends the same request again. If the server says that the
  external id is taken, the outcome is `unknown`, and `asyncmig.adopt` links the customer to its company.
- Killed during the uploads: it uploads the missing files. Uploads older than 30 minutes are repeated.
- Killed between the start request and its response: it sends the same body with the same key and gets the same
  run.
- Killed while the run runs: it polls the run.
- Killed while a decision is sent: it reads the run first. It sends the decision only if the run still asks the same
  questions.
- Killed during the download: it downloads again. A file is renamed into place only when it is complete.

Three journals offer the same interface, `JournalPort`:

- `Journal`: an SQLite file on a local disk, for one process or a few of one machine.
- `MemoryJournal`: the memory of this process. It is lost when the process ends.
- `asyncmig.distributed.postgres.PostgresJournal`: for workers on many machines.

`open_journal` returns the journal at a path, at the address of a PostgreSQL, or at the address in an environment
variable whose name is given. `Fleet(journal=...)` accepts the same values.

```python
async with asyncmig.Journal("fleet.db") as journal:
    async with asyncmig.Session() as session, asyncmig.Fleet(session, journal=journal, to="out") as fleet:
        outcomes = [outcome async for outcome in fleet.run(specs)]
    print(len(await journal.states()), "customers are recorded")
```

Only one process works on a customer at a time. Its *claim* is a lease (in real seconds) with a fencing token: a
process that has lost its claim cannot write any more. While another live process holds the claim, `CustomerHeld` is
raised. The claims of a dead process on the same machine can be taken over at once, those of any other process when
its lease expires.

Any process can record an *instruction* to migrate, retry or cancel a customer, even while another process holds the
customer. The instruction contains the customer's spec without secrets, so that `Fleet.resume` needs no spec after a
restart. It is deleted when the migration has an outcome. Earlier versions of asyncmig can use the same journal and
ignore instructions.

A journal stores bytes and does not interpret them. It contains no API key and no secrets of destinations. Only the
owner of a new file can read it (mode 0600). Keep the journal until all customers are delivered: the server does not
find a company by its `external_id`.

Modules, in reading order: `ports` (what callers see), `lease` (when a holder counts as dead), `claims` (claims and
writes, in SQL for both databases), `writer` (the thread and the group commit), `database` (what both journals share),
then `sqlite` and `sqlite_file`, `postgres` and `postgres_schema`, `memory`, and `place`.
"""

from asyncmig.journal.database import Claim, DatabaseJournal
from asyncmig.journal.memory import MemoryClaim, MemoryJournal
from asyncmig.journal.place import JournalPlace, open_journal
from asyncmig.journal.ports import Activity, ClaimPort, Instruction, JournalEvent, JournalPort, Wanted
from asyncmig.journal.sqlite import Journal

__all__ = [
    "Activity",
    "Claim",
    "ClaimPort",
    "DatabaseJournal",
    "Instruction",
    "Journal",
    "JournalEvent",
    "JournalPlace",
    "JournalPort",
    "MemoryClaim",
    "MemoryJournal",
    "Wanted",
    "open_journal",
]
