"""The endpoints and run lifecycles of the API generation "companies", as tables."""

from dataclasses import replace
from functools import partial

from asyncmig._core.endpoint import LARGEST_LIST, Endpoint, Lane, Repeat
from asyncmig._core.lifecycle import Lifecycle

__all__ = [
    "CREATE_ANONYMOUS",
    "CREATE_COMPANY",
    "CREATE_UPLOAD",
    "DECIDE",
    "DOWNLOAD",
    "EXPORT",
    "IMPORT",
    "KEY_HEADER",
    "LIST_IMPORTS",
    "LIST_SOURCES",
    "LIST_TEMPLATES",
    "PUT_BYTES",
    "READ_EXPORT",
    "READ_IMPORT",
    "START_EXPORT",
    "START_IMPORT",
]

KEY_HEADER = "x-api-key"
"""The header that carries the API key."""

IMPORT = Lifecycle(
    known=frozenset({"queued", "running"}),
    parked=frozenset({"needs_attention"}),
    terminal=frozenset({"completed", "failed", "canceled"}),
    shortest_floor=2.0,
    longest_floor=30.0,
    age_per_floor=120.0,
    parked_floor=10.0,
    read_lag=30.0,
    stall_alarm=75 * 60.0,
)
EXPORT = replace(IMPORT, parked=frozenset())

_READ = partial(Endpoint, method="GET", repeat=Repeat.ALWAYS)
_SEND = partial(Endpoint, method="POST")

LIST_SOURCES = _READ(name="list sources", template="/sources", largest_reply=LARGEST_LIST)
LIST_TEMPLATES = _READ(name="list templates", template="/templates", largest_reply=LARGEST_LIST)
CREATE_COMPANY = _SEND(
    name="create company",
    template="/companies",
    repeat=Repeat.KEYED,  # the key is the external id
    doubtful_refusals=frozenset({400, 409}),  # a server may check the name before the external id
    advice=(
        "Look for the company in the dashboard: if it is there and is yours, "
        "`asyncmig adopt EXTERNAL_ID COMPANY_ID`; if it is not there, run again."
    ),
)
CREATE_ANONYMOUS = replace(CREATE_COMPANY, repeat=Repeat.NEVER, doubtful_refusals=frozenset())
"""Create a company without an external id: a repeat could create a second company."""
CREATE_UPLOAD = _SEND(name="create upload", template="/companies/{id}/uploads", repeat=Repeat.ALWAYS)
PUT_BYTES = Endpoint(name="put bytes", method="PUT", template="{upload_url}", repeat=Repeat.ALWAYS)
START_IMPORT = _SEND(
    name="start import",
    template="/companies/{id}/imports",
    repeat=Repeat.ALWAYS,  # the body carries an idempotency key
    advice="List the company's imports: if this one is not among them, start it with a new idempotency key.",
)
READ_IMPORT = _READ(name="read import", template="/companies/{id}/imports/{run_id}", lane=Lane.POLL)
LIST_IMPORTS = _READ(  # also, with `status=active`, the active import
    name="list imports", template="/companies/{id}/imports", largest_reply=LARGEST_LIST
)
DECIDE = _SEND(
    name="decide",
    template="/companies/{id}/imports/{run_id}/decisions",
    repeat=Repeat.NEVER,  # a blind repeat could answer the questions of the next park
    lane=Lane.DECIDE,
    advice="Read the run: if it still asks the same questions, decide again.",
)
START_EXPORT = _SEND(
    name="start export",
    template="/companies/{id}/exports",
    repeat=Repeat.KEYED,  # no request finds an export whose response was lost
    advice="Start it again with the same idempotency key, mode and selection: if it is running, its run is returned.",
)
READ_EXPORT = _READ(name="read export", template="/companies/{id}/exports/{run_id}", lane=Lane.POLL)
DOWNLOAD = _READ(name="download", template="/companies/{id}/export.csv", sends_html=False)
