"""Choices where the contract is silent. A client must be correct under all of them."""

from collections.abc import Mapping
from dataclasses import dataclass

from asyncmig.simulator.server.settings import (
    BaseVariants,
    Readings,
    amount,
    readings_of,
    refusal,
    share,
    silence,
    text,
)

__all__ = ["REFUSALS", "SETTLED", "SILENCES", "VARIANTS", "Variants"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants(BaseVariants):
    """One choice for each silence of the contract. Times are in seconds, shares are from 0 to 1."""

    limits: str = silence(1, "by-class", "per-minute", "per-endpoint")
    """How requests are limited, unless the world has limits of its own."""
    window: str = silence(1, "fixed", "sliding")
    phase: float = amount(1, 0.0, 17.0, 1234.5)
    """When a fixed window begins."""
    rejects_count: bool = silence(1, False, True)
    """A request that got a 429 counts as well."""
    replays_count: bool = silence(1, True, False)
    """A create that returned an existing migration counts."""
    concurrency_counts: bool = silence(1, False, True)
    """A start that was refused because too many runs were in progress counts."""
    create_costs_write: bool = silence(1, False, True)
    limit_headers: str = silence(1, "refusals", "always", "none")
    """Which replies carry the headers about limits; `none` as in June."""
    concurrency_wait: float | None = amount(1, 60.0, None)
    """`Retry-After` of a 429 because of concurrency."""
    concurrency_list: bool = silence(1, True, False)
    """That 429 lists the runs."""
    listed_ids: str = silence(1, "uuid", "run_")
    """The form of the ids in that list."""
    foreign_runs: int = amount(1, 0, 1, 2)
    """At most this many runs of others are in progress; they come and go."""
    knowledge_class: str = silence(2, "writes", "reads", "agent")
    """The class of reads of knowledge and connections."""
    cancel_class: str = silence(2, "reads", "writes", "agent")
    files_class: str = silence(2, "reads", "writes")
    old_end: float = amount(3, 0.0, 5.0, 20.0)
    """For how long reads show the old end after a resuming POST."""
    old_block: float = amount(3, 0.0, 5.0)
    """For how long reads show the old block after an answer or credentials."""
    execute_id: str = silence(3, "same", "new")
    after_clarify: str = silence(4, "completed", "awaiting_approval")
    blocked_stream: str = silence(5, "done", "open")
    """A stream of a blocked run ends with `done`, or stays open."""
    early_done: bool = silence(5, False, True)
    """A stream that is opened in the first seconds after a start ends at once."""
    stream_done: bool = silence(5, True, False)
    """A stream says `done` before the server closes it."""
    framing: str = silence(5, "plain", "comments", "crlf", "lines", "cut")
    stream_errors: float = share(5, 0.0, 0.3)
    """Share of streams that fail after 20 s, with an `error` that has no sequence."""
    partial_answers: str = silence(6, "asked", "guessed", "refused")
    """What happens to questions that an answer leaves out."""
    question_ids: str = silence(6, "unique", "restart")
    replies: str = silence(6, "told", "absent")
    """Whether the thread has the answers of the user."""
    free_text: str = silence(7, "refused", "accepted", "asked")
    """What happens to free text where a question takes only its options."""
    options: str = silence(7, "listed", "none", "none-closed")
    """`none`: questions show no options. `none-closed`: they take no text of one's own either, but accept any."""
    block_reason: str = silence(7, "named", "absent", "unknown")
    """`unknown`: a block has a reason that no client knows, and no questions."""
    blocked_lives: float | None = amount(8, None, 1800.0)
    """After this time a blocked run is swept to `failed`."""
    preview_lives: float | None = amount(8, None, 3600.0)
    """After this time a run that awaits approval is swept to `failed`."""
    retention: float | None = amount(8, None, 7200.0)
    """After this time of rest a migration is deleted."""
    second_execute: str = silence(9, "replaces", "adds")
    second_generate: str = silence(9, "same", "differs")
    existing: str = silence(10, "none", "same", "renamed", "other-templates")
    """A migration that already has the external id when it is first asked for."""
    existing_file: bool = silence(10, False, True)
    """That migration has a file with no rows."""
    unused_urls_count: bool = silence(11, False, True)
    file_names: str = silence(11, "kept", "changed", "replaced")
    """`changed`: in lower case, without blanks. `replaced`: only the suffix is kept."""
    url_lives: float = amount(11, 3600.0, 30.0)
    """For how long a signed URL can be used."""
    lag: float = amount(12, 0.0, 5.0)
    """For how long a new migration, run or preview is a 404."""
    preview_after_execute: str = silence(12, "stays", "gone")
    filter: str = silence(13, "ignored", "honoured", "refused")
    total_records: bool = silence(13, True, False)
    cut_downloads: float = share(14, 0.0, 0.3)
    """Share of downloads that end too early, with 200."""
    before_execute: str = silence(14, "empty", "missing")
    """A download before there is anything to download: an empty sheet, or 404."""
    per_sheet: str = silence(15, "all", "with-rows", "null")
    template_names: str = silence(15, "distinct", "repeated")
    coverage: str = silence(15, "object", "list", "null")
    strange_status: str | None = text(15, None, "paused")
    """A status that the contract does not name, shown while a run is running."""
    cell_row: str = silence(16, "row", "rowIndex", "rowNumber")
    cell_column: str = silence(16, "column", "columnName", "colIndex")
    cell_reason: str = silence(16, "message", "reason", "error")
    first_row: int = amount(16, 0, 1, 2)
    """The number of the first row below the header, in `invalid_cells`."""
    cancel_ended: str = silence(17, "state", "refused")
    cancel_takes: float = amount(17, 0.0, 20.0)
    """For how long a run stays in progress after a cancel was accepted."""
    delete_missing: str = silence(18, "missing", "false")
    update_status: int = silence(18, 201, 200)
    """How a POST of an existing connection is answered."""
    omitted_fields: str = silence(18, "kept", "reset")
    bare_conflict: bool = silence(19, False, True)
    """The 409 of a start has no `run_id`."""
    download_url: str = silence(20, "absolute", "redirect", "relative")
    late_url: float = amount(20, 0.0, 5.0)
    """For how long a completed job has no `download_url`."""
    errors: str = silence(21, "json", "html", "empty", "textless")
    retry_after: str = silence(21, "seconds", "date")
    proxy_403: float = share(21, 0.0, 0.02)
    """Share of requests that a proxy refuses."""

    # Choices that the contract calls settled for the client
    request_input: str = silence(0, "questions", "requests", "inputs", "list", "one")
    """How the thread has the questions of a block: in a field of this name, as a list, or one without a list."""
    log_at_preview: str = silence(0, "settled", "in-flight")
    log_status: str = silence(0, "migration", "run")
    """Whose status the log has, and its 409."""
    log_entries: str = silence(0, "phase", "run")
    cancel_at_preview: str = silence(0, "ends", "refused", "loses-preview")
    compressed_sheets: bool = silence(0, False, True)
    """A sheet with rows cannot be downloaded, only exported."""
    listens_after: float = amount(0, 0.0, 3.0)
    """For how long a run that just blocked answers 409, because the agent does not listen yet."""
    zombies: float = share(0, 0.0, 0.05)
    """Share of operations whose engine dies: the run is swept to `failed` in the end."""
    expired_job: str = silence(0, "gone", "no-link")
    failing_jobs: float = share(0, 0.0, 0.3)
    """Share of export jobs that end `failed`."""
    sample: str = silence(0, "first", "drawn")
    """The rows of a preview: the first ones, or rows that are drawn anew for each request."""

    # Errors that the contract names
    region: str = refusal("live", "closed")
    """`closed`: a create is refused with 409."""
    source_names: str = refusal("unique", "ambiguous")
    """`ambiguous`: a create with a source is refused with 409, and so is the knowledge of a source."""
    log: str = refusal("served", "unavailable")
    """`unavailable`: a read of the log is refused with 503."""

    def having(self, name: str, rate: float) -> "Variants":
        """Return these choices with one more, by its name on the command line (`VARIANTS`).

        `rate` is the share of those that have one. Raises `KeyError` for an unknown name.
        """
        chosen, value = VARIANTS[name]
        return self.with_reading(chosen, value, rate)


SILENCES: Mapping[int, Mapping[str, Readings]] = {n: readings_of(Variants, n) for n in range(1, 22)}
"""By the number of a silence in the contract: the fields of `Variants`, and their readings."""
SETTLED: Mapping[str, Readings] = readings_of(Variants, 0)
"""Choices that the contract's section "Settled for this client" is about: fields and readings."""
REFUSALS: Mapping[str, Readings] = readings_of(Variants, None)
"""Errors that the contract names: fields and readings."""
VARIANTS: Mapping[str, tuple[str, object]] = {
    f"{name.replace('_', '-')}={value}": (name, value)
    for group in (*SILENCES.values(), SETTLED, REFUSALS)
    for name, readings in group.items()
    for value in readings[1:]
}
"""Names on the command line (`filter=honoured`): the field and its value. Defaults have no name."""
