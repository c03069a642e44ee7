"""Verifies, decodes and reassembles the webhooks that deliver an export.

The batches of an export arrive as signed webhooks, in any order, and some of them twice. This package does no I/O, so
it works with every web framework. With aiohttp:

```python
import os, time
from aiohttp import web
from asyncmig import webhooks

exports = webhooks.Reassembler(max_bytes=256 * 1024**2)


async def handler(request: web.Request) -> web.Response:
    body = await request.read()  # the raw bytes: the signature covers them
    try:
        event = webhooks.receive(body, request.headers, os.environ["WEBHOOK_SECRET"], now=time.time())
        added = exports.add(event)  # `added.given_up`: exports that were dropped to free memory
    except asyncmig.WebhookRefused as error:
        return web.Response(status=400, text=str(error))
    if added.export:
        print(added.export.external_id, {sheet.name: len(sheet.rows) for sheet in added.export.sheets()})
    return web.Response(status=204)  # a webhook that was answered with 2xx is not sent again


app = web.Application(client_max_size=8 * 1024**2)
app.router.add_post("/webhooks", handler)
```

Delivery is at least once: a webhook without a 2xx response is sent again. Respond with 2xx only after you have stored
the body, with 400 to a webhook that is refused, and with 5xx if your store is unavailable.

A `Reassembler` keeps batches in memory. If a restart must lose nothing, write each body to a store before you
respond, and call `exports.add(webhooks.decode(body))` for each stored body at the next start. While a secret is being
replaced, pass both secrets in a list.

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
