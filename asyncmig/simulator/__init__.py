"""A server that implements the API's contract, in this process or on loopback.

```python
from asyncmig.simulator import SCHEMAS, SOURCES, World, serve

world = World(key="key", sources=SOURCES, schemas=SCHEMAS, seed=1)
async with serve(world) as serving:
    async with asyncmig.Session("key", serving.base_url) as session:
        print([source.name for source in await session.companies.sources()])
print(world.ledger.requests)
```

A `World` is one account: sources, templates, companies, runs. `Faults` makes requests go wrong, `Variants`
chooses behaviour that the contract leaves open, `RunDurations` says how long runs take, and a rate limit
(`FixedWindow`, `SlidingLog` and others) counts requests. The `Ledger` lists every request, and the `Verdict`
counts what the client did wrong. The simulator imports nothing of the client. To test your own service,
`asyncmig.testing` is shorter.
"""

from asyncmig.simulator.companies.company import Verdict
from asyncmig.simulator.companies.data import SCHEMAS, SOURCES, Plan, generate
from asyncmig.simulator.companies.runs import Ask, Fails, Parks, Script
from asyncmig.simulator.companies.tables import Column, Schema
from asyncmig.simulator.companies.variants import PROFILES, VARIANTS, Profile, Variants
from asyncmig.simulator.companies.webhooks import (
    DEFECTS,
    Webhook,
    Workbook,
    disordered,
    export_webhooks,
    send,
)
from asyncmig.simulator.companies.world import World
from asyncmig.simulator.server.app import Served, Serving, fast_loop, serve
from asyncmig.simulator.server.faults import FAULTS, Fault, Faults
from asyncmig.simulator.server.ledger import Entry, Ledger
from asyncmig.simulator.server.limits import FixedWindow, RateLimit, SlidingCounter, SlidingLog, TokenBucket
from asyncmig.simulator.server.messages import Reply, Request, Stream
from asyncmig.simulator.server.settings import RunDurations

__all__ = [
    "DEFECTS",
    "FAULTS",
    "PROFILES",
    "SCHEMAS",
    "SOURCES",
    "VARIANTS",
    "Ask",
    "Column",
    "Entry",
    "Fails",
    "Fault",
    "Faults",
    "FixedWindow",
    "Ledger",
    "Parks",
    "Plan",
    "Profile",
    "RateLimit",
    "Reply",
    "Request",
    "RunDurations",
    "Schema",
    "Script",
    "Served",
    "Serving",
    "SlidingCounter",
    "SlidingLog",
    "Stream",
    "TokenBucket",
    "Variants",
    "Verdict",
    "Webhook",
    "Workbook",
    "World",
    "disordered",
    "export_webhooks",
    "fast_loop",
    "generate",
    "send",
    "serve",
]
