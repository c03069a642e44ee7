"""Choices where the contract is silent. A client must be correct under all of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from random import Random
from typing import TypeVar

from asyncmig.simulator.server.settings import check_amount, is_share

__all__ = ["REFUSALS", "SETTLED", "SILENCES", "VARIANTS", "Variants"]

T = TypeVar("T")
Readings = tuple[object, ...]


def _silence(number: int, *readings: T) -> T:
    """Return a field of `Variants` with its readings; the first is the default."""
    return field(default=readings[0], metadata={"silence": number, "readings": readings})


def _refusal(*readings: T) -> T:
    """Return a field for an error that the contract names. No random choice has it, because it ends a customer."""
    return field(default=readings[0], metadata={"silence": None, "readings": readings})


# The metadata of each field is the one list of readings: `SILENCES`, the names and the random choice derive from it.
@dataclass(frozen=True, slots=True, kw_only=True)
class Variants:
    """One choice for each silence of the contract. Times are in seconds, shares are from 0 to 1."""

    limits: str = _silence(1, "by-class", "per-minute", "per-endpoint")
    """How requests are limited, unless the world has limits of its own."""
    window: str = _silence(1, "fixed", "sliding")
    phase: float = _silence(1, 0.0, 17.0, 1234.5)
    """When a fixed window begins."""
    rejects_count: bool = _silence(1, False, True)
    """A request that got a 429 counts as well."""
    replays_count: bool = _silence(1, True, False)
    """A create that returned an existing migration counts."""
    concurrency_counts: bool = _silence(1, False, True)
    """A start that was refused because too many runs were in progress counts."""
    create_costs_write: bool = _silence(1, False, True)
    limit_headers: str = _silence(1, "refusals", "always", "none")
    """Which replies carry the headers about limits; `none` as in June."""
    concurrency_wait: float | None = _silence(1, 60.0, None)
    """`Retry-After` of a 429 because of concurrency."""
    concurrency_list: bool = _silence(1, True, False)
    """That 429 lists the runs."""
    listed_ids: str = _silence(1, "uuid", "run_")
    """The form of the ids in that list."""
    foreign_runs: int = _silence(1, 0, 1, 2)
    """At most this many runs of others are in progress; they come and go."""
    knowledge_class: str = _silence(2, "writes", "reads", "agent")
    """The class of reads of knowledge and connections."""
    cancel_class: str = _silence(2, "reads", "writes", "agent")
    files_class: str = _silence(2, "reads", "writes")
    old_end: float = _silence(3, 0.0, 5.0, 20.0)
    """For how long reads show the old end after a resuming POST."""
    old_block: float = _silence(3, 0.0, 5.0)
    """For how long reads show the old block after an answer or credentials."""
    execute_id: str = _silence(3, "same", "new")
    after_clarify: str = _silence(4, "completed", "awaiting_approval")
    blocked_stream: str = _silence(5, "done", "open")
    """A stream of a blocked run ends with `done`, or stays open."""
    early_done: bool = _silence(5, False, True)
    """A stream that is opened in the first seconds after a start ends at once."""
    stream_done: bool = _silence(5, True, False)
    """A stream says `done` before the server closes it."""
    framing: str = _silence(5, "plain", "comments", "crlf", "lines", "cut")
    stream_errors: float = _silence(5, 0.0, 0.3)
    """Share of streams that fail after 20 s, with an `error` that has no sequence."""
    partial_answers: str = _silence(6, "asked", "guessed", "refused")
    """What happens to questions that an answer leaves out."""
    question_ids: str = _silence(6, "unique", "restart")
    replies: str = _silence(6, "told", "absent")
    """Whether the thread has the answers of the user."""
    free_text: str = _silence(7, "refused", "accepted", "asked")
    """What happens to free text where a question takes only its options."""
    options: str = _silence(7, "listed", "none", "none-closed")
    """`none`: questions show no options. `none-closed`: they take no text of one's own either, but accept any."""
    block_reason: str = _silence(7, "named", "absent", "unknown")
    """`unknown`: a block has a reason that no client knows, and no questions."""
    blocked_lives: float | None = _silence(8, None, 1800.0)
    """After this time a blocked run is swept to `failed`."""
    preview_lives: float | None = _silence(8, None, 3600.0)
    """After this time a run that awaits approval is swept to `failed`."""
    retention: float | None = _silence(8, None, 7200.0)
    """After this time of rest a migration is deleted."""
    second_execute: str = _silence(9, "replaces", "adds")
    second_generate: str = _silence(9, "same", "differs")
    existing: str = _silence(10, "none", "same", "renamed", "other-templates")
    """A migration that already has the external id when it is first asked for."""
    existing_file: bool = _silence(10, False, True)
    """That migration has a file with no rows."""
    unused_urls_count: bool = _silence(11, False, True)
    file_names: str = _silence(11, "kept", "changed")
    url_lives: float = _silence(11, 3600.0, 30.0)
    """For how long a signed URL can be used."""
    lag: float = _silence(12, 0.0, 5.0)
    """For how long a new migration, run or preview is a 404."""
    preview_after_execute: str = _silence(12, "stays", "gone")
    filter: str = _silence(13, "ignored", "honoured", "refused")
    total_records: bool = _silence(13, True, False)
    cut_downloads: float = _silence(14, 0.0, 0.3)
    """Share of downloads that end too early, with 200."""
    before_execute: str = _silence(14, "empty", "missing")
    """A download before there is anything to download: an empty sheet, or 404."""
    per_sheet: str = _silence(15, "all", "with-rows", "null")
    template_names: str = _silence(15, "distinct", "repeated")
    coverage: str = _silence(15, "object", "list", "null")
    drift: bool = _silence(15, False, True)
    """Numbers as strings, absent fields, unknown fields."""
    strange_status: str | None = _silence(15, None, "paused")
    """A status that the contract does not name, shown while a run is running."""
    cell_row: str = _silence(16, "row", "rowIndex", "rowNumber")
    cell_column: str = _silence(16, "column", "columnName", "colIndex")
    cell_reason: str = _silence(16, "message", "reason", "error")
    first_row: int = _silence(16, 0, 1, 2)
    """The number of the first row below the header, in `invalid_cells`."""
    cancel_ended: str = _silence(17, "state", "refused")
    cancel_takes: float = _silence(17, 0.0, 20.0)
    """For how long a run stays in progress after a cancel was accepted."""
    delete_missing: str = _silence(18, "missing", "false")
    update_status: int = _silence(18, 201, 200)
    """How a POST of an existing connection is answered."""
    omitted_fields: str = _silence(18, "kept", "reset")
    bare_conflict: bool = _silence(19, False, True)
    """The 409 of a start has no `run_id`."""
    download_url: str = _silence(20, "absolute", "redirect", "relative")
    late_url: float = _silence(20, 0.0, 5.0)
    """For how long a completed job has no `download_url`."""
    errors: str = _silence(21, "json", "html", "empty", "textless")
    retry_after: str = _silence(21, "seconds", "date")
    proxy_403: float = _silence(21, 0.0, 0.02)
    """Share of requests that a proxy refuses."""

    # Choices that the contract calls settled for the client
    log_at_preview: str = _silence(0, "settled", "in-flight")
    log_status: str = _silence(0, "migration", "run")
    """Whose status the log has, and its 409."""
    log_entries: str = _silence(0, "phase", "run")
    cancel_at_preview: str = _silence(0, "ends", "refused", "loses-preview")
    compressed_sheets: bool = _silence(0, False, True)
    """A sheet with rows cannot be downloaded, only exported."""
    listens_after: float = _silence(0, 0.0, 3.0)
    """For how long a run that just blocked answers 409, because the agent does not listen yet."""
    zombies: float = _silence(0, 0.0, 0.05)
    """Share of operations whose engine dies: the run is swept to `failed` in the end."""
    expired_job: str = _silence(0, "gone", "no-link")
    failing_jobs: float = _silence(0, 0.0, 0.3)
    """Share of export jobs that end `failed`."""
    sample: str = _silence(0, "first", "drawn")
    """The rows of a preview: the first ones, or rows that are drawn anew for each request."""

    # Errors that the contract names
    region: str = _refusal("live", "closed")
    """`closed`: a create is refused with 409."""
    source_names: str = _refusal("unique", "ambiguous")
    """`ambiguous`: a create with a source is refused with 409, and so is the knowledge of a source."""
    log: str = _refusal("served", "unavailable")
    """`unavailable`: a read of the log is refused with 503."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for invalid numbers and unknown words."""
        for each in fields(self):
            value, readings = getattr(self, each.name), _READINGS[each.name]
            if each.name in _SHARES:
                if not is_share(value):
                    raise ValueError(f"{each.name} must be a number from 0 to 1: {value!r}")
            elif any(isinstance(known, int | float) and not isinstance(known, bool) for known in readings):
                if value is not None:
                    check_amount(each.name, value)
            elif each.name != "strange_status" and not any(
                value == known and type(value) is type(known) for known in readings
            ):
                raise ValueError(f"{each.name} must be one of {', '.join(map(str, readings))}: {value!r}")

    @classmethod
    def drawn(cls, rng: Random) -> "Variants":
        """Return a random reading of every silence."""
        drawn = {name: rng.choice(readings) for name, readings in _READINGS.items() if name not in REFUSALS}
        return replace(cls(), **drawn)  # type: ignore[arg-type]

    def having(self, name: str, rate: float) -> "Variants":
        """Return these choices with one more, by its name on the command line (`VARIANTS`).

        `rate` is the share of those that have one. Raises `KeyError` for an unknown name.
        """
        chosen, value = VARIANTS[name]
        return replace(self, **{chosen: rate if chosen in _SHARES else value})  # type: ignore[arg-type]


_SHARES = ("cut_downloads", "failing_jobs", "proxy_403", "stream_errors", "zombies")
_READINGS: Mapping[str, Readings] = {each.name: each.metadata["readings"] for each in fields(Variants)}
SILENCES: Mapping[int, Mapping[str, Readings]] = {
    number: {
        each.name: _READINGS[each.name] for each in fields(Variants) if each.metadata["silence"] == number
    }
    for number in range(1, 22)
}
"""By the number of a silence in the contract: the fields of `Variants`, and their readings."""
SETTLED: Mapping[str, Readings] = {
    each.name: _READINGS[each.name] for each in fields(Variants) if each.metadata["silence"] == 0
}
"""Choices that the contract's section "Settled for this client" is about: fields and readings."""
REFUSALS: Mapping[str, Readings] = {
    each.name: _READINGS[each.name] for each in fields(Variants) if each.metadata["silence"] is None
}
"""Errors that the contract names: fields and readings."""
VARIANTS: Mapping[str, tuple[str, object]] = {
    f"{name.replace('_', '-')}={value}": (name, value)
    for name, readings in _READINGS.items()
    for value in readings[1:]
}
"""Names on the command line (`filter=honoured`): the field and its value. Defaults have no name."""
