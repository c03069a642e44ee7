"""The endpoints and run lifecycles of the API generation "migrations", as tables."""

from dataclasses import replace
from functools import partial

from asyncmig._core.endpoint import LARGEST_LIST, Endpoint, Lane, Repeat
from asyncmig._core.lifecycle import Lifecycle

__all__ = [
    "ANSWER",
    "CANCEL_RUN",
    "CREATE_ANONYMOUS",
    "CREATE_MIGRATION",
    "CREATE_UPLOADS",
    "DELETE_CONNECTION",
    "DOWNLOAD",
    "EXPORT",
    "FETCH_EXPORT",
    "GENERATE",
    "LIST_FILES",
    "LIST_SOURCES",
    "LIST_TEMPLATES",
    "MIGRATION_KNOWLEDGE",
    "PIN_SOURCE",
    "PREVIEW",
    "PUT_BYTES",
    "READ_CONNECTION",
    "READ_EXPORT",
    "READ_LOG",
    "READ_RUN",
    "READ_TEMPLATE",
    "RUN",
    "SAVE_CONNECTION",
    "SOURCE_KNOWLEDGE",
    "START_EXPORT",
    "START_RUN",
    "STREAM_THREAD",
    "SUBMIT_CREDENTIALS",
    "THREAD",
    "UPDATE_SOURCE",
    "UPDATE_TEMPLATE",
    "WRITE_MIGRATION_KNOWLEDGE",
    "WRITE_SOURCE_KNOWLEDGE",
]

_ACTIVE = frozenset({"queued", "running"})
RUN = Lifecycle(
    known=_ACTIVE,
    parked=frozenset({"blocked"}),
    terminal=frozenset({"awaiting_approval", "completed", "failed", "canceled"}),
    shortest_floor=10.0,
    longest_floor=30.0,
    age_per_floor=60.0,
    parked_floor=10.0,
    read_lag=30.0,
    stall_alarm=75 * 60.0,
)
"""The statuses of one operation. The run itself may become active again with the next operation."""
EXPORT = replace(
    RUN,
    known=frozenset({"pending", "running"}),
    parked=frozenset(),
    terminal=frozenset({"completed", "failed"}),
)

_READ = partial(Endpoint, method="GET", repeat=Repeat.ALWAYS, budgets=("reads",))
_WRITE = partial(Endpoint, repeat=Repeat.ALWAYS, budgets=("writes",))

LIST_SOURCES = _READ(name="list sources", template="/sources", largest_reply=LARGEST_LIST)
UPDATE_SOURCE = _WRITE(name="update source", method="PATCH", template="/sources/{source}")
PIN_SOURCE = _WRITE(name="pin source", method="POST", template="/sources/{source}/pin")
SOURCE_KNOWLEDGE = _WRITE(name="read source knowledge", method="GET", template="/sources/{source}/knowledge")
WRITE_SOURCE_KNOWLEDGE = replace(SOURCE_KNOWLEDGE, name="write source knowledge", method="PATCH")
LIST_TEMPLATES = _READ(name="list templates", template="/templates", largest_reply=LARGEST_LIST)
READ_TEMPLATE = _READ(name="read template", template="/templates/{slug}", largest_reply=LARGEST_LIST)
UPDATE_TEMPLATE = replace(READ_TEMPLATE, name="update template", method="PATCH", budgets=("writes",))
CREATE_MIGRATION = Endpoint(
    name="create migration",
    method="POST",
    template="/migrations",
    repeat=Repeat.KEYED,  # by its external id
    advice="Create it again with the same external id and source: if it exists, that is the migration you get.",
    budgets=("create", "writes"),
)
CREATE_ANONYMOUS = replace(
    CREATE_MIGRATION,
    repeat=Repeat.NEVER,
    advice="Look for the migration in the provider's app. Without an external id no request can find it.",
)
"""Create a migration without an external id: a repeat could create a second one."""
CREATE_UPLOADS = _WRITE(name="create uploads", method="POST", template="/migrations/{id}/files")
PUT_BYTES = Endpoint(name="put bytes", method="PUT", template="{signed_url}", repeat=Repeat.ALWAYS)
LIST_FILES = _READ(
    name="list files",
    template="/migrations/{id}/files",
    largest_reply=LARGEST_LIST,
    budgets=("reads", "writes"),
)
SAVE_CONNECTION = _WRITE(  # creates or updates in place
    name="save connection", method="POST", template="/migrations/{id}/source-connection"
)
READ_CONNECTION = replace(SAVE_CONNECTION, name="read connection", method="GET")
DELETE_CONNECTION = replace(SAVE_CONNECTION, name="delete connection", method="DELETE")
MIGRATION_KNOWLEDGE = replace(
    SOURCE_KNOWLEDGE, name="read migration knowledge", template="/migrations/{id}/knowledge"
)
WRITE_MIGRATION_KNOWLEDGE = replace(MIGRATION_KNOWLEDGE, name="write migration knowledge", method="PATCH")
START_RUN = Endpoint(
    name="start run",
    method="POST",
    template="/migrations/{id}/runs",
    repeat=Repeat.NEVER,  # a repeat when nothing is active starts another run
    lane=Lane.DECIDE,
    advice=(
        "Look at the migration's log and thread (`migration.log()`, `migration.events()`): if neither shows the run, "
        "start it again."
    ),
    budgets=("agent",),
    run_order=0,
)
"""Start update, clarify or execute. They go before `GENERATE`, because their results are already prepared."""
GENERATE = replace(START_RUN, lane=Lane.WORK, budgets=("agent", "generate"), run_order=1)
READ_RUN = _READ(name="read run", template="/migrations/{id}/runs/{run_id}", lane=Lane.POLL)
CANCEL_RUN = replace(
    READ_RUN,
    name="cancel run",
    method="PATCH",
    lane=Lane.DECIDE,  # must not wait behind polls
    budgets=("reads", "writes"),  # of several, because the server may count it in a third one
)
ANSWER = Endpoint(
    name="answer",
    method="POST",
    template="/migrations/{id}/runs/{run_id}/messages",
    repeat=Repeat.NEVER,  # a blind repeat could answer the next questions
    lane=Lane.DECIDE,
    advice="Read the run: if it still asks the same questions, answer again.",
    budgets=("agent",),
)
SUBMIT_CREDENTIALS = replace(
    ANSWER,
    name="submit credentials",
    template="/migrations/{id}/runs/{run_id}/credentials",
    advice="Read the run: if it still waits for credentials, submit them again.",
)
PREVIEW = _READ(name="preview", template="/migrations/{id}/preview", largest_reply=LARGEST_LIST)
THREAD = replace(PREVIEW, name="thread", template="/migrations/{id}/thread")
STREAM_THREAD = _READ(
    name="stream",
    template="/migrations/{id}/thread/stream",
    lane=Lane.POLL,
    quiet_for=330.0,  # the server ends a stream after about five minutes
)
DOWNLOAD = _READ(name="download", template="/migrations/{id}/exports/{slug}.csv", sends_html=False)
START_EXPORT = Endpoint(
    name="start export job",
    method="POST",
    template="/migrations/{id}/exports",
    repeat=Repeat.NEVER,  # has no key and no list; see `export_jobs`
    advice="Start it again: an export changes nothing. While the lost one runs, the server answers 409.",
    budgets=("jobs",),
)
READ_EXPORT = _READ(name="read export job", template="/migrations/{id}/exports/jobs/{job_id}", lane=Lane.POLL)
FETCH_EXPORT = Endpoint(name="fetch export", method="GET", template="{download_url}", repeat=Repeat.ALWAYS)
READ_LOG = replace(PREVIEW, name="log", template="/migrations/{id}/log")
