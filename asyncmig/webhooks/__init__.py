"""Webhooks that deliver a workbook: does one come from the server, what does it say, and is the export whole.

    exports = Reassembler()

    async def handler(request):                            # of any web framework
        body = await request.read()                        # the raw bytes: they are what is signed
        try:
            event = receive(body, request.headers, secret, now=time.time())
            added = exports.add(event)
        except WebhookRefused as error:
            return Response(400, str(error))
        await store.keep(body)                             # before the answer
        if added.export:
            store.load(added.export.sheets())
        return Response(204)

Delivery is at least once: a webhook that is not answered with 2xx comes again, one that is does not. So answer 2xx
when you have kept it. A `Reassembler` is memory: what must outlive the process goes to a store of yours first, and
into a new `Reassembler` through `decode` at the next start. Answer 400 to what is refused, 5xx if your store is away.

No clock, no network, no file: `now` is given, in seconds since 1970.
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
