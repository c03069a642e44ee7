"""Events and logging: what happens inside a session, as frozen records.

There are two ways to receive events. `subscribe` registers a callback, which is called at once, in the task in which
the event happens; it must not block. `open` returns an async iterator with a buffer, for a task of its own:

```python
from asyncmig.events import Held, RequestDone, RunEnded

async with asyncmig.Session() as session:
    with session.events.subscribe(print), session.events.open(RequestDone, RunEnded, Held) as events:
        await session.companies.sources()
        event = await anext(events)
        match event:
            case RequestDone():
                print(event.endpoint, event.status)
            case RunEnded() | Held():
                print(event)
```

A callback cannot break a call: if it raises, the error is logged and the callback is removed. An iterator cannot slow
a call down: if its buffer is full, the oldest event is dropped and counted in `EventStream.dropped`. All times are
seconds on the event loop's clock, so that the events of one session form one timeline.

`AttemptFailed` states which attempt failed, why, and how long the step is repeated. It reports the first failure of a
step, and further ones at intervals that double. `Recovered` states that the step has succeeded.

The logger `asyncmig` receives the same events. It prints nothing until you configure logging. Requests have the level
DEBUG; holds, runs and migrations INFO; stalled runs, blocked run slots and failed attempts WARNING. Each log record
has the event's fields as attributes, and its name as the attribute `event`.
"""

from asyncmig.events.delivery import Events, EventStream, EventT
from asyncmig.events.records import (
    AttemptFailed,
    BudgetLearnt,
    Event,
    Held,
    MigrationChanged,
    Recovered,
    RequestDone,
    RequestSent,
    RunChanged,
    RunEnded,
    RunSlotsBlocked,
    RunSlotsChanged,
    RunStalled,
    SharedWindowFound,
    SharedWindowLost,
    SlotAwaited,
)

__all__ = [
    "AttemptFailed",
    "BudgetLearnt",
    "Event",
    "EventStream",
    "EventT",
    "Events",
    "Held",
    "MigrationChanged",
    "Recovered",
    "RequestDone",
    "RequestSent",
    "RunChanged",
    "RunEnded",
    "RunSlotsBlocked",
    "RunSlotsChanged",
    "RunStalled",
    "SharedWindowFound",
    "SharedWindowLost",
    "SlotAwaited",
]
