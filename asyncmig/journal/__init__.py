"""Journal and resume: a durable record of what was done for each customer.

A process that is killed anywhere resumes from its journal. Before each request that changes something at the
server, the journal records the intent with the exact body and idempotency key; after it, the result. When the
same call runs again, it repeats only what is safe to repeat. In the API generation `companies`:

- Killed before the create request: it creates the company.
- Killed between the create request and its response: it sends the same request again. If the server says that the
  external id is taken, the outcome is `unknown`, and `asyncmig.adopt` links the customer to its company.
- Killed during the uploads: it uploads the missing files. Uploads older than 30 minutes are repeated.
- Killed between the start request and its response: it sends the same body with the same key and gets the same
  run.
- Killed while the run runs: it polls the run.
- Killed while a decision is sent: it reads the run first, and sends the decision only if the run still asks the
  same.
- Killed during the download: it downloads again. A file is renamed into place only when it is complete.

Three journals offer the same interface, `JournalPort`:

- `Journal`: an SQLite file on a local disk, for one process or a few of one machine.
- `MemoryJournal`: in this process only; it survives nothing.
- `asyncmig.distributed.postgres.PostgresJournal`: for workers on many machines.

`open_journal` takes a path, the address of a PostgreSQL, or the name of an environment variable that holds such an
address, and returns the journal there. `Fleet(journal=...)` takes the same.

```python
async with asyncmig.Journal("fleet.db") as journal:
    async with asyncmig.Session() as session, asyncmig.Fleet(session, journal=journal, to="out") as fleet:
        outcomes = [outcome async for outcome in fleet.run(specs)]
    print(len(await journal.states()), "customers are recorded")
```

Only one process works on a customer at a time. A *claim* is a lease (in real seconds) with a fencing token: a
process that lost its claim cannot write any more. `CustomerHeld` is raised while another live process holds the
claim. A dead holder on the same machine is replaced at once, and any other when its lease expires.

Any process can record an *instruction* about a customer that another process holds: to migrate, retry or cancel it.
It holds the customer's spec without secrets, so that `Fleet.resume` needs no spec after a restart. It is deleted once
the migration has an outcome. Earlier versions of asyncmig ignore instructions and can use the same journal meanwhile.

A journal stores bytes and does not interpret them. It contains no API key and no secrets of destinations. A
new file is readable only by its owner (mode 0600). Keep the journal until all customers are delivered:
without it, what was created at the server cannot be found by its `external_id`.

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
