"""The events of a session: what happened, as frozen records."""

from collections.abc import Mapping

import msgspec

from asyncmig.steps import OutcomeName, Step

__all__ = [
    "AttemptFailed",
    "BudgetLearnt",
    "Event",
    "Held",
    "MigrationChanged",
    "Recovered",
    "RequestDone",
    "RequestSent",
    "RunChanged",
    "RunEnded",
    "RunSlotsBlocked",
    "RunSlotsChanged",
    "RunStalled",
    "SharedWindowFound",
    "SharedWindowLost",
    "SlotAwaited",
]


class _Record(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    at: float
    """The time on the event loop's clock, in seconds."""


class _Request(_Record, frozen=True, kw_only=True):
    endpoint: str
    """Method and route template; `PUT {upload_url}` for an upload to a URL that the server named."""

    @property
    def is_external(self) -> bool:
        """Whether the request goes to a URL that the server named, on a host without the API's rate limit."""
        return not self.endpoint.partition(" ")[2].startswith("/")


class RequestSent(_Request, frozen=True, kw_only=True, tag=True):
    """A request is sent now: its slot of the rate limit was granted."""

    ids: Mapping[str, str] = {}
    """The values of the route's placeholders."""
    lane: str
    attempt: int
    """The number of the attempt, from 1. A repeat after a 429 has the number of the attempt that was refused."""
    waited: float = 0.0
    """Seconds that this attempt waited for the limit."""


class RequestDone(_Request, frozen=True, kw_only=True, tag=True):
    """One attempt of one request has ended."""

    ids: Mapping[str, str] = {}
    """The values of the route's placeholders."""
    lane: str
    attempt: int
    waited: float = 0.0
    """Seconds that this attempt waited for the limit."""
    seconds: float
    """Seconds from the send to the end of the response, or to the failure."""
    status: int | None
    """None if no response arrived."""
    error: str | None = None
    """Why no complete response arrived; None if one did."""


class AttemptFailed(_Record, frozen=True, kw_only=True, tag=True):
    """An attempt of a step failed, and the step is repeated. A step is a request, a whole upload or download, or a
    status check.

    Two other failures are reported in the same way: a journal that cannot be written (`endpoint` is `journal`), and a
    shared window that is still unavailable after `SharedWindowLost` (`endpoint` is `shared window of BUDGET`).

    The first failure of a step is reported, and then one after 15 s, 30 s, 60 s, ... at most 10 minutes.
    """

    external_id: str | None = None
    """The customer for whom the attempt was made; None for calls outside of `migrate` and `Fleet`."""
    endpoint: str
    """Method and route template."""
    ids: Mapping[str, str] = {}
    """The values of the route's placeholders that are known."""
    attempt: int
    """The number of failed attempts of the step so far."""
    attempts: int | None = None
    """The maximum number of attempts; None if `until` limits them, or if there is no limit.

    There is no limit for status checks, and for calls during an outage of the server.
    """
    until: float | None = None
    """The time on the event loop's clock until which the step is repeated; None if `attempts` limits it, or if there
    is no limit.
    """
    status: int | None
    """The status of the response; None if no complete response arrived."""
    error: str
    """The server's text, or the reason why no complete response arrived."""


class Recovered(_Record, frozen=True, kw_only=True, tag=True):
    """A step that `AttemptFailed` reported has succeeded."""

    external_id: str | None = None
    endpoint: str
    """Method and route template, as in the last `AttemptFailed` of the step."""
    ids: Mapping[str, str] = {}
    attempts: int
    """The number of attempts, including the successful one."""
    seconds: float
    """Seconds since the last `AttemptFailed` of the step."""


class Held(_Record, frozen=True, kw_only=True, tag=True):
    """A 429 arrived: no request of this budget is sent until `until`."""

    budget: str
    """Method and route template; `*` if one budget covers all requests."""
    until: float
    """The end of the hold, on the event loop's clock."""
    seconds: float
    """The duration of the hold."""
    slots: int
    """W: the gate's present estimate of the requests that a window allows. `BudgetLearnt` reports a new estimate."""
    burst: int
    """B: how many of them the gate sends at once."""


class BudgetLearnt(_Record, frozen=True, kw_only=True, tag=True):
    """The gate's estimate of a limit changed: after a probe, after a window without a 429, or because a new limit was
    set.
    """

    budget: str
    """Method and route template; `*` if one budget covers all requests."""
    slots: int
    """W: the requests that a window allows."""
    burst: int
    """B: how many of them the gate sends at once."""


class SharedWindowLost(_Record, frozen=True, kw_only=True, tag=True):
    """The store of the shared window is unavailable. This process continues with its share of the window."""

    budget: str
    """Method and route template; `*` if one budget covers all requests; `runs` for the run slots."""
    slots: int
    """The share: the last known limit, divided by the number of processes."""
    processes: int
    """The number of processes that are assumed to share the window."""
    error: str
    """Why the store is unavailable."""


class SharedWindowFound(_Record, frozen=True, kw_only=True, tag=True):
    """The store of the shared window is available again."""

    budget: str
    """As in `SharedWindowLost`."""
    slots: int
    """W: the requests that a window allows to all processes together."""
    seconds: float
    """Seconds for which the store was unavailable."""


class SlotAwaited(_Record, frozen=True, kw_only=True, tag=True):
    """A request begins to wait, probably for more than a minute: a budget is used up, or every run slot is taken."""

    external_id: str | None = None
    """The customer for whom the request waits; None for calls outside of `migrate` and `Fleet`."""
    endpoint: str
    """Method and route template."""
    ids: Mapping[str, str] = {}
    """The values of the route's placeholders."""
    budget: str
    """The budget that delays it most, or `runs` for the run slots."""
    until: float | None
    """The estimated time of the send, on the event loop's clock; None for a run slot, because the durations of runs
    are not known."""
    seconds: float | None
    """The estimated wait; None for a run slot."""


class RunSlotsChanged(_Record, frozen=True, kw_only=True, tag=True):
    """The run slots of the account changed, as far as this process knows them."""

    limit: int | None
    """The most runs that may be in progress; None: any number."""
    in_progress: int
    """The known runs in progress, of all processes that share the slots."""
    waits_for_person: int
    """The number of these runs that are blocked until a person answers."""
    others: int
    """Runs of other users of the account. Only a 429 shows them."""
    waiting: int
    """The number of starts that wait for a run slot or for a budget."""


class RunSlotsBlocked(_Record, frozen=True, kw_only=True, tag=True):
    """A start waits, and every run slot of the account is held by a run that waits for a person.

    It is reported again only after a slot was free.
    """

    runs: tuple[str, ...]
    """The ids of the resources whose runs wait, such as migrations."""


class RunChanged(_Record, frozen=True, kw_only=True, tag=True):
    """A read has shown a new status or a new progress text of a run."""

    status: str
    progress: str | None
    ids: Mapping[str, str]
    """The server's ids, by kind: `company` and `run` in the API generation "companies"."""


class RunEnded(_Record, frozen=True, kw_only=True, tag=True):
    """A read has shown that a run has ended. `RunChanged` precedes this event."""

    status: str
    seconds: float | None
    """The duration of the run, without the time for which it was parked; None if its start is unknown."""
    noticed_within: float | None
    """Seconds since the last read that showed the run active. Its end was noticed with at most this delay. None if no
    read showed it active.
    """
    ids: Mapping[str, str]
    """The server's ids, by kind."""


class RunStalled(_Record, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A run has not ended by the stall alarm of its API generation. Polling continues."""

    external_id: str | None = None
    """The customer, if `migrate` or `Fleet` waits for the run."""
    seconds: float
    """The age of the run, without the time for which it was parked."""
    ids: Mapping[str, str]
    """The server's ids, by kind."""


class MigrationChanged(_Record, frozen=True, kw_only=True, tag=True):
    """One customer's migration reached a step."""

    external_id: str
    step: Step | OutcomeName
    """The step that begins, or the outcome of a migration that ends."""
    detail: str = ""
    """What the API generation adds to the step, for people."""
    ids: Mapping[str, str] = {}
    """The server's ids that are known so far, by kind."""


Event = (
    RequestSent
    | RequestDone
    | Held
    | BudgetLearnt
    | SharedWindowLost
    | SharedWindowFound
    | RunChanged
    | RunEnded
    | RunSlotsBlocked
    | RunSlotsChanged
    | SlotAwaited
    | RunStalled
    | MigrationChanged
    | AttemptFailed
    | Recovered
)
"""Any event of a session."""
