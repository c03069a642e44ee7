"""Several processes that use one API key, and workers on many machines. A module may need an extra.

| module | purpose | extra |
| --- | --- | --- |
| `asyncmig.distributed.redis` | one window and the run slots for all processes that share a key | `redis` |
| `asyncmig.distributed.local` | the same on one host, without a server: `Session(shared="local")` | |
| `asyncmig.distributed.postgres` | a journal in PostgreSQL, which also shares run slots | `postgres` |
| `asyncmig.distributed.saq` | a queue with one job per customer, and its workers | `saq` |

One key needs at most 18 slots a second, so more processes do not make it faster. Use several processes for
rolling deployments, for many keys, and for services that run several workers anyway.

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

Without Redis, each process continues with its share of the window, emits `SharedWindowLost`, and returns by
itself (`SharedWindowFound`). An hourly budget that cannot be divided, and the run slots, wait for Redis. An
unavailable PostgreSQL is waited for.

**Workers.** Set `ASYNCMIG_QUEUE`, `ASYNCMIG_DATABASE` and `ASYNCMIG_WINDOW` to URLs, and start any number of
workers with `saq asyncmig.distributed.saq.settings`. Submit with `MigrationQueue(url).run(specs)` or
`asyncmig run customers.csv --queue ASYNCMIG_QUEUE --journal ASYNCMIG_DATABASE`. Input files must exist where the
workers run, and sheets appear there (`ASYNCMIG_OUT`).

- Options of the submitter (`--decide`, `--filter` and others) travel with the jobs. Without them, the workers'
  own apply (`ASYNCMIG_DECIDE`, `ASYNCMIG_FILTER`, `ASYNCMIG_RETRIES`, `ASYNCMIG_DELIVER_REJECTED`).
- Workers read the limit and the server from their own environment: `ASYNCMIG_LIMITS` (or `ASYNCMIG_RATE`,
  `ASYNCMIG_SCOPE`), `ASYNCMIG_BASE_URL`, `ASYNCMIG_CONCURRENCY`. They warn about other `ASYNCMIG_...` variables.
- A stopping worker requeues its jobs; another worker takes over the jobs of a dead one.
- `MigrationQueue.decide` answers the questions of a parked customer.
- `asyncmig.distributed.saq.worker_settings(...)` makes settings of your own.

**The queue is trusted.** Everyone who can write to it decides which files the workers read and how parked imports
are answered. It keeps outcomes for a week; those of parked customers hold their questions, with cells of their
files. Let only your own services reach it. `ASYNCMIG_ROOT` names a folder that all input files must lie below,
after symbolic links are resolved.
"""
