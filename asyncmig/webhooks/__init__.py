"""Webhooks that deliver an export: verify, decode and reassemble them.

An export that is delivered as signed webhooks arrives in batches, in any order, and some batches arrive twice.
This package does no I/O, so it works with every web framework. With aiohttp:

```python
import os, time
from aiohttp import web
from asyncmig import webhooks

exports = webhooks.Reassembler(max_bytes=256 * 1024**2)


async def handler(request: web.Request) -> web.Response:
    body = await request.read()  # the raw bytes: the signature covers them
    try:
        event = webhooks.receive(body, request.headers, os.environ["WEBHOOK_SECRET"], now=time.time())
        added = exports.add(event)  # .given_up: exports that were dropped to free memory
    except asyncmig.WebhookRefused as error:
        return web.Response(status=400, text=str(error))
    if added.export:
        print(added.export.external_id, {sheet.name: len(sheet.rows) for sheet in added.export.sheets()})
    return web.Response(status=204)  # a webhook that was answered with 2xx is not sent again


app = web.Application(client_max_size=8 * 1024**2)
app.router.add_post("/webhooks", handler)
```

Delivery is at least once: a webhook without a 2xx response is sent again. Respond 2xx only after you have kept
the body, 400 to a webhook that is refused, and 5xx if your store is unavailable.

A `Reassembler` keeps its batches in memory. If a restart must lose nothing, write `body` to a store before you
respond, and pass the stored bodies to `exports.add(webhooks.decode(body))` at the next start. While a secret is
being replaced, pass both secrets in a list.

`now` is in seconds since 1970.
"""

from asyncmig.errors import WebhookRefused
from asyncmig.webhooks.payload import Batch, Event, Origin, OtherEvent, Row, SheetRows, decode
from asyncmig.webhooks.reassembly import Added, Export, Incomplete, Reassembler
from asyncmig.webhooks.signature import TOLERANCE, receive, verify

__all__ = [
    "TOLERANCE",
    "Added",
    "Batch",
    "Event",
    "Export",
    "Incomplete",
    "Origin",
    "OtherEvent",
    "Reassembler",
    "Row",
    "SheetRows",
    "WebhookRefused",
    "decode",
    "receive",
    "verify",
]
