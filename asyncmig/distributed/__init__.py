"""For several processes with one API key, and for workers on many machines.

| module | purpose | extra |
| --- | --- | --- |
| `asyncmig.distributed.redis` | one window and the run slots for all processes that share a key | `redis` |
| `asyncmig.distributed.local` | the same on one host, without a server: `Session(shared="local")` | |
| `asyncmig.distributed.postgres` | a journal in PostgreSQL, which also shares run slots | `postgres` |
| `asyncmig.distributed.saq` | a queue with one job per customer, and its workers | `saq` |

All endpoints of a key together allow at most 18 requests a second, so more processes do not make it faster. Use
several processes for rolling deployments, for many keys, and for services that have several workers for other
reasons.

```python
from asyncmig.distributed.postgres import PostgresJournal
from asyncmig.distributed.redis import RedisWindow

async with (
    asyncmig.Session(shared=RedisWindow(os.environ["REDIS_URL"])) as session,
    PostgresJournal(os.environ["DATABASE_URL"]) as journal,
    asyncmig.Fleet(session, journal=journal, to="out") as fleet,
):
    outcomes = [outcome async for outcome in fleet.run(specs)]
```

While Redis is unavailable, each process emits `SharedWindowLost` and continues with its share of the window. It
returns to the shared window by itself (`SharedWindowFound`). Two kinds of requests wait for Redis: those of an hourly
budget that is too small to be divided, and those that start runs. While PostgreSQL is unavailable, processes wait for
it.

**Workers.** Set `ASYNCMIG_QUEUE`, `ASYNCMIG_DATABASE` and `ASYNCMIG_WINDOW` to URLs, and start any number of workers
with `saq asyncmig.distributed.saq.settings`. Submit customers with `MigrationQueue(url).run(specs)` or with `asyncmig
run customers.csv --queue ASYNCMIG_QUEUE --journal ASYNCMIG_DATABASE`. Input files must exist on the machines of the
workers, which write the sheets there (`ASYNCMIG_OUT`).

- Options of the submitter (`--decide`, `--filter` and others) are stored in the jobs. For any other option, the
  setting of the worker applies (`ASYNCMIG_DECIDE`, `ASYNCMIG_FILTER`, `ASYNCMIG_RETRIES`,
  `ASYNCMIG_DELIVER_REJECTED`).
- Workers read the limit and the server from their own environment: `ASYNCMIG_LIMITS` (or `ASYNCMIG_RATE`,
  `ASYNCMIG_SCOPE`), `ASYNCMIG_BASE_URL`, `ASYNCMIG_CONCURRENCY`. They warn about other `ASYNCMIG_...` variables.
- A stopping worker requeues its jobs; another worker takes over the jobs of a dead one.
- `MigrationQueue.decide` answers the questions of a parked customer.
- `asyncmig.distributed.saq.worker_settings(...)` makes settings of your own.

**The queue is trusted.** Anyone who can write to it decides which files the workers read and how parked imports are
answered. It keeps outcomes for a week; those of parked customers contain their questions, which quote cells of their
files. Give access only to your own services. `ASYNCMIG_ROOT` names a folder that must contain all input files, after
symbolic links are resolved.
"""
