"""The simulator of the API generation "migrations".

```python
import asyncio

from asyncmig.simulator import serve
from asyncmig.simulator.migrations import World

world = World(key="key", seed=1)
async with serve(world) as serving:
    ...  # a client of serving.base_url, with the key
print(world.ledger.requests, world.verdict(asyncio.get_running_loop().time()))
```
"""

from asyncmig.simulator.migrations.account import EPOCH, Migration
from asyncmig.simulator.migrations.data import SCHEMAS, SOURCES
from asyncmig.simulator.migrations.scripts import DROP, KEEP, Block, Question, Script
from asyncmig.simulator.migrations.tables import Column, Schema
from asyncmig.simulator.migrations.variants import REFUSALS, SETTLED, SILENCES, VARIANTS, Variants
from asyncmig.simulator.migrations.world import Verdict, World
from asyncmig.simulator.server.limits import Limits

__all__ = [
    "DROP",
    "EPOCH",
    "KEEP",
    "REFUSALS",
    "SCHEMAS",
    "SETTLED",
    "SILENCES",
    "SOURCES",
    "VARIANTS",
    "Block",
    "Column",
    "Limits",
    "Migration",
    "Question",
    "Schema",
    "Script",
    "Variants",
    "Verdict",
    "World",
]
