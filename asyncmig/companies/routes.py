"""The endpoints and run lifecycles of the API generation "companies", as tables."""

from dataclasses import replace

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

_ACTIVE = frozenset({"queued", "running"})
_ENDED = frozenset({"completed", "failed", "canceled"})
IMPORT = Lifecycle(
    known=_ACTIVE,
    parked=frozenset({"needs_attention"}),
    terminal=_ENDED,
    shortest_floor=2.0,
    longest_floor=30.0,
    age_per_floor=120.0,
    parked_floor=10.0,
    read_lag=30.0,
    stall_alarm=75 * 60.0,
)
EXPORT = replace(IMPORT, parked=frozenset())

LIST_SOURCES = Endpoint(
    name="list sources",
    method="GET",
    template="/sources",
    repeat=Repeat.ALWAYS,
    largest_reply=LARGEST_LIST,
)
LIST_TEMPLATES = replace(LIST_SOURCES, name="list templates", template="/templates")
CREATE_COMPANY = Endpoint(
    name="create company",
    method="POST",
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
CREATE_UPLOAD = Endpoint(
    name="create upload", method="POST", template="/companies/{id}/uploads", repeat=Repeat.ALWAYS
)
PUT_BYTES = Endpoint(name="put bytes", method="PUT", template="{upload_url}", repeat=Repeat.ALWAYS)
START_IMPORT = Endpoint(
    name="start import",
    method="POST",
    template="/companies/{id}/imports",
    repeat=Repeat.ALWAYS,  # the body carries an idempotency key
    advice="List the company's imports: if this one is not among them, start it with a new idempotency key.",
)
READ_IMPORT = Endpoint(
    name="read import",
    method="GET",
    template="/companies/{id}/imports/{run_id}",
    repeat=Repeat.ALWAYS,
    lane=Lane.POLL,
)
LIST_IMPORTS = Endpoint(
    name="list imports",  # also, with `status=active`, the active import
    method="GET",
    template="/companies/{id}/imports",
    repeat=Repeat.ALWAYS,
    largest_reply=LARGEST_LIST,
)
DECIDE = Endpoint(
    name="decide",
    method="POST",
    template="/companies/{id}/imports/{run_id}/decisions",
    repeat=Repeat.NEVER,  # a blind repeat could answer the questions of the next park
    lane=Lane.DECIDE,
    advice="Read the run: if it still asks the same questions, decide again.",
)
START_EXPORT = Endpoint(
    name="start export",
    method="POST",
    template="/companies/{id}/exports",
    repeat=Repeat.KEYED,  # no request finds an export whose response was lost
    advice="Start it again with the same idempotency key, mode and selection: if it is running, its run is returned.",
)
READ_EXPORT = Endpoint(
    name="read export",
    method="GET",
    template="/companies/{id}/exports/{run_id}",
    repeat=Repeat.ALWAYS,
    lane=Lane.POLL,
)
DOWNLOAD = Endpoint(
    name="download",
    method="GET",
    template="/companies/{id}/export.csv",
    repeat=Repeat.ALWAYS,
    sends_html=False,
)
