"""The API generations that asyncmig knows: the interface that each implements, and the registry.

A generation is one API of the server with its own routes, statuses and workflow. The rest of asyncmig (fleet, plan,
status, queue, command line) uses a generation only through `Generation`. Each journal record carries the name of the
generation that wrote it; a record without a name was written by `companies`.
"""

from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from asyncmig._core.endpoint import Endpoint
from asyncmig._io.context import SessionContext
from asyncmig.companies.workflow.generation import CompaniesGeneration
from asyncmig.customers.catalog import TemplateRules
from asyncmig.customers.decisions import Decision
from asyncmig.customers.options import MigrationCall, MigrationOptions
from asyncmig.customers.outcome import Outcome, Reviewed
from asyncmig.customers.questions import NeedsAttention
from asyncmig.customers.spec import CheckedSpec, HasNames, ResolvedSpec, Spec, checked_spec
from asyncmig.customers.status import CustomerRecord, RemainingWork, RunUpdate, unreadable_record
from asyncmig.errors import InvalidInput
from asyncmig.journal import ClaimPort, JournalEvent, JournalPort
from asyncmig.migrations.workflow.generation import MigrationsGeneration

__all__ = [
    "DEFAULT",
    "Generation",
    "api_of",
    "check_options",
    "check_spec",
    "find",
    "known",
    "read",
    "register",
    "spoken_instead",
    "unregister",
]

DEFAULT = "companies"
"""The generation of calls without `api`, and of journal records without a name."""


class Generation(Protocol):
    """The interface of an API generation. The methods with a body are optional: a subclass inherits them."""

    @property
    def name(self) -> str:
        """The name in `api=`, `--api` and journal records."""
        ...

    def migrate(
        self,
        context: SessionContext,
        claim: ClaimPort,
        call: MigrationCall,
    ) -> Coroutine[object, object, Outcome]:
        """Migrate the customer of a claim, or continue from the claim's state. Raises `JournalError`."""
        ...

    def check(self, spec: Spec) -> None:
        """Raise `InvalidInput` for a field of `spec` that this generation lacks, or whose value it cannot use."""
        if not spec.source:
            raise InvalidInput("source", "", f"is empty: the API generation {self.name!r} needs one")
        for name in ("connections", "connection"):
            if getattr(spec, name) is not None:
                raise InvalidInput(name, "***", f"is not supported by the API generation {self.name!r}")

    async def check_unchanged(self, spec: Spec, record: CustomerRecord) -> None:
        """Raise `InvalidInput` for files that `if_changed="refuse"` refuses: they were imported and have changed."""

    def read(self, external_id: str, state: bytes) -> CustomerRecord:
        """Return the content of a state that this generation wrote. Raises `ValueError` if it cannot be decoded."""
        ...

    @property
    def supported_options(self) -> frozenset[str]:
        """The fields of `MigrationOptions` that may differ from their defaults."""
        return frozenset()

    @property
    def supported_decisions(self) -> tuple[type[Decision], ...]:
        """The decisions that `decide` accepts."""
        return ()

    def describe(self, event: JournalEvent) -> str:
        """Return a description of a journal entry, for people. It may contain unescaped text of the server."""
        return ""

    async def resolve(self, context: SessionContext, specs: Sequence[Spec]) -> Sequence[ResolvedSpec]:
        """Return each spec with the values that the API takes for its source and templates, and the errors in them.

        `migrate` does this itself for a customer that has nothing on the server yet. The command line does it for all
        such customers of a manifest at once. A value that the API takes as it is costs no request; the others cost
        one request per list, which the session keeps for all customers. Raises what a request raises.
        """
        return [ResolvedSpec(spec, ()) for spec in specs]

    async def template_rules(self, context: SessionContext) -> Sequence[TemplateRules] | None:
        """Return the account's templates; None if the server does not list them."""
        return None

    async def remaining(
        self, files: Sequence[Path], record: CustomerRecord | None, to: Path, options: MigrationOptions
    ) -> RemainingWork | None:
        """Return the work that `migrate` would still do for a customer; None if there is none. `to`: its folder.

        Sends nothing. Raises `InvalidInput` for files that are missing.
        """
        if record is not None and (record.outcome is not None or not record.is_readable):
            return None
        return RemainingWork(files=len(files))

    @property
    def probe(self) -> str | None:
        """The endpoint that `asyncmig doctor` requests to check the server and the key; None if there is none."""
        return None

    def recognizes(self, listed: object) -> bool | None:
        """Return whether the JSON response to `probe` comes from this generation; None if it does not show that."""
        return None

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """The endpoints that charge named budgets, by the keys that `requests_left` returns."""
        return {}

    @property
    def requests_before_run(self) -> Sequence[str]:
        """The endpoints that a customer uses before its run starts."""
        return ()

    def requests_left(self, work: RemainingWork) -> Mapping[str, int]:
        """Return the fewest requests, by endpoint, that the remaining work takes."""
        return {}

    def catalogue_requests(self, customers: Iterable[HasNames]) -> Mapping[str, int]:
        """Return the requests, by endpoint, that `resolve` sends for customers with nothing on the server yet."""
        return {}

    async def updates(self, context: SessionContext, record: CustomerRecord) -> AsyncIterator[RunUpdate]:
        """Yield each change of a customer's run at the server until it has ended. Only reads are sent."""
        raise InvalidInput("api", self.name, "cannot follow runs")
        yield  # a generator, like its overrides

    async def questions(self, context: SessionContext, record: CustomerRecord) -> NeedsAttention | None:
        """Return what a parked customer's run asks now; None if it asks nothing."""
        raise InvalidInput("api", self.name, "has no questions: there is nothing to review")

    async def decide(
        self,
        context: SessionContext,
        journal: JournalPort,
        external_id: str,
        decision: Decision,
        *,
        shown: NeedsAttention,
        allow_destructive: bool = False,
    ) -> Reviewed:
        """Send a decision about what was `shown`, and write it to the journal; the next `migrate` continues."""
        raise InvalidInput("decision", decision, f"cannot be sent: the API generation {self.name} has none")

    async def cancel(
        self,
        context: SessionContext,
        journal: JournalPort,
        external_id: str,
        *,
        reject_parked: bool = False,
    ) -> Outcome:
        """Cancel a customer that no task works on, and return its outcome, which the journal then has.

        The outcome is `Pending` with the reason `canceled`. The next `migrate` of the customer continues. A customer
        that was delivered, has failed or is `Unknown` keeps its outcome. A generation that can cancel runs on the
        server cancels the customer's run. `reject_parked`: whether a parked run is rejected, so that it ends.

        Raises `InvalidInput` for a customer without a record that this generation can read; `CustomerHeld` if a
        process works on the customer; `UnknownOutcome` if the response to a request was lost; `JournalError`.
        """
        raise InvalidInput("api", self.name, "cannot cancel customers")

    async def adopt(self, journal: JournalPort, external_id: str, resource_id: str) -> str:
        """Link a customer to a company or migration that exists on the server, and return its id."""
        raise InvalidInput("api", self.name, "has nothing to adopt: its create requests can be repeated")


_generations: dict[str, Generation] = {
    DEFAULT: CompaniesGeneration(),
    MigrationsGeneration.name: MigrationsGeneration(),
}


def register(generation: Generation) -> None:
    """Add a generation to the registry, for example in a test. Raises `InvalidInput` for a name in use."""
    if generation.name in _generations:
        raise InvalidInput("api", generation.name, "is registered already")
    _generations[generation.name] = generation


def unregister(name: str) -> None:
    """Undo `register`."""
    del _generations[name]


def known() -> tuple[str, ...]:
    """Return the names of all generations, sorted."""
    return tuple(sorted(_generations))


def find(api: str) -> Generation:
    """Return the generation of a name. Raises `InvalidInput` that lists the known names."""
    try:
        return _generations[api]
    except (KeyError, TypeError):
        raise InvalidInput("api", api, f"is not an API generation; known are: {', '.join(known())}") from None


def spoken_instead(api: str, listed: object) -> str | None:
    """Return the generation whose response to its `probe` is `listed`; None if it may be a response of `api`."""
    if find(api).recognizes(listed):
        return None
    return next((name for name in known() if name != api and _generations[name].recognizes(listed)), None)


class _Tag(msgspec.Struct):
    api: str = DEFAULT


def api_of(state: bytes) -> str:
    """Return the name of the generation that wrote a journal record, known or not; `DEFAULT` if it has none."""
    try:
        return msgspec.json.decode(state, type=_Tag).api
    except (ValueError, TypeError, RecursionError):
        return DEFAULT  # its reader says what is wrong with the record


def read(external_id: str, state: bytes) -> CustomerRecord:
    """Return the content of a journal record. A record that cannot be used is not `is_readable`; nothing is
    raised.
    """
    api = api_of(state)
    if api not in _generations:
        return unreadable_record(external_id, api, f"API generation {api!r}; known are: {', '.join(known())}")
    try:
        return _generations[api].read(external_id, state)
    except (ValueError, TypeError, RecursionError) as error:
        return unreadable_record(external_id, api, str(error))


def check_spec(generation: Generation, given: object, root: Path | str | None = None) -> CheckedSpec:
    """Return a spec and the error in its values, also those that only the generation knows; see `checked_spec`."""
    spec, refused = checked_spec(given, root)
    if refused is None:
        try:
            generation.check(spec)
        except InvalidInput as error:
            return spec, error
    return spec, refused


def check_options(generation: Generation, options: MigrationOptions) -> None:
    """Raise `InvalidInput` for an option that a generation lacks, naming both."""
    default = MigrationOptions()
    for name in MigrationOptions.__dataclass_fields__:
        value: object = getattr(options, name)
        if value != getattr(default, name) and name not in generation.supported_options:
            raise InvalidInput(name, value, f"is not supported by the API generation {generation.name!r}")
