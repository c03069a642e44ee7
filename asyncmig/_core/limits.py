"""The limits of a server: the rates of its budgets, and the number of runs that may be in progress.

Also a rate as people write it (`100/60s`, `5/1h`), and as the headers of a response state it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Literal, Self, cast, final

from asyncmig._core.arguments import check_fields
from asyncmig._core.endpoint import Endpoint
from asyncmig.errors import InvalidInput

__all__ = ["BY_KEY", "Limits", "Rate", "RateHeaders", "Scope", "charged", "parse_rate", "short_form"]

Scope = Literal["endpoint", "key"]
"""How the server counts requests to endpoints without a named budget: for each endpoint, or for the whole API key."""

BY_KEY = "*"
"""The name of the budget that endpoints without a named budget charge together if `Limits.key` is set."""
_HINT = "must be per-endpoint, per-key, per-minute, by-class, or pairs such as reads=30/60s,agent=5/1h,runs=3"
_RATE = re.compile(r"(\d{1,9})/(\d{0,9}(?:\.\d{1,9})?)(s|m|h)?")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `limit` requests in `window` seconds. Raises `InvalidInput` for numbers that are not positive."""

    limit: int = 100
    window: float = 60.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.limit < 1 or not 0 < self.window < math.inf:
            raise InvalidInput("rate", str(self), "must have a limit and a window greater than 0")

    def __str__(self) -> str:
        hours = self.window / 3600.0
        return (
            f"{self.limit}/{hours:g}h"
            if hours >= 1 and hours.is_integer()
            else f"{self.limit}/{self.window:g}s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RateHeaders:
    """The values of `Retry-After` and `X-RateLimit-*` in a response; None for a header that is absent."""

    retry_after: float | None = None
    """Seconds until the server may accept another request."""
    limit: int | None = None
    """The number of requests that a window allows."""
    remaining: int | None = None
    """The number of requests that the server accepts until the reset."""
    reset: float | None = None
    """Seconds until the reset; not positive if the reset has passed."""


def parse_rate(text: str) -> Rate:
    """Parse `100/60s`, `100/1m` or `100/m`. Raises `InvalidInput` for any other text and for numbers of 0."""
    match = _RATE.fullmatch(text.strip().lower())
    if match is None or not (match[2] or match[3]):
        raise InvalidInput("rate", text, "must look like 100/60s (requests/seconds)")
    try:
        return Rate(int(match[1]), float(match[2] or 1) * _UNITS[match[3] or "s"])
    except InvalidInput as error:
        raise InvalidInput("rate", text, error.reason) from None


@final
@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the server allows: the rates of its budgets, and the number of runs in progress.

    - `budgets`: the rates of named budgets. An endpoint names the budgets that its requests charge. A request charges
      those of them that have a rate here.
    - `endpoint`: the rate of each endpoint that charges no named budget.
    - `key`: if given, all endpoints that charge no named budget share this rate.
    - `runs`: the most runs that may be in progress in the account; None: any number.

    `Limits.BY_CLASS`, the default, has the documented classes of requests, down to one request an hour.
    `Limits.PER_MINUTE` is the same with 60 requests a minute for `reads`, `writes` and `jobs`, as in the API's
    OpenAPI description. `Limits.PER_ENDPOINT` and `Limits.PER_KEY` have no named budgets and no limit of runs.
    `changed` returns a copy with other numbers:

    ```python
    asyncmig.Limits.BY_CLASS.changed(agent=asyncmig.Rate(50, 3600.0), runs=5)
    ```

    Raises `InvalidInput` for a rate that is not positive, and for less than one run.
    """

    budgets: Mapping[str, Rate] = field(default_factory=dict[str, Rate])
    endpoint: Rate = Rate()
    key: Rate | None = None
    runs: int | None = None

    PER_ENDPOINT: ClassVar["Limits"]
    PER_KEY: ClassVar["Limits"]
    PER_MINUTE: ClassVar["Limits"]
    BY_CLASS: ClassVar["Limits"]

    def __post_init__(self) -> None:
        check_fields(self)
        for name, rate in self.budgets.items():
            if not isinstance(cast(object, rate), Rate):
                raise InvalidInput(f"budgets[{name!r}]", rate, "must be a Rate")
        if self.runs is not None and self.runs < 1:
            raise InvalidInput("runs", self.runs, "must be at least 1")
        object.__setattr__(self, "budgets", MappingProxyType(dict(self.budgets)))

    def __str__(self) -> str:
        """Return the text from which `parse` makes these limits."""
        rates = dict(self.budgets)
        if self.key is not None:
            rates["key"] = self.key
        if self.endpoint != Rate() or not rates:
            rates["endpoint"] = self.endpoint
        pairs = [f"{name}={rate}" for name, rate in rates.items()]
        return ",".join(pairs if self.runs is None else [*pairs, f"runs={self.runs}"])

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[object, ...]:
        return partial(
            Limits, budgets=dict(self.budgets), endpoint=self.endpoint, key=self.key, runs=self.runs
        ), ()

    def changed(self, *, runs: int | None = None, **budgets: Rate) -> Self:
        """Return a copy with other rates of some named budgets, and another number of runs if `runs` is given."""
        return replace(self, budgets={**self.budgets, **budgets}, runs=self.runs if runs is None else runs)

    @classmethod
    def parse(cls, text: str) -> "Limits":
        """Return the preset of that name, or the limits that `NAME=RATE,...,runs=N` describes.

        `NAME` is a budget of `BY_CLASS`, `endpoint` or `key`. A budget that the text does not name has its rate of
        `BY_CLASS`. If the text names only `endpoint` and `key`, the result has no named budgets. Raises
        `InvalidInput` for any other text.
        """
        if (preset := _PRESETS.get(text.strip().lower())) is not None:
            return preset
        values: dict[str, str] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals:
                raise InvalidInput("limits", text, _HINT)
            if name in values:
                raise InvalidInput("limits", text, f"names {name!r} twice")
            if name not in (known := (*cls.BY_CLASS.budgets, "endpoint", "key", "runs")):
                raise InvalidInput("limits", text, f"names {name!r}, which is none of {', '.join(known)}")
            values[name] = value
        runs = _parsed_runs(text, values.pop("runs")) if "runs" in values else None
        rates = {name: _parsed_rate(text, name, value) for name, value in values.items()}
        endpoint, key = rates.pop("endpoint", None), rates.pop("key", None)
        if not rates and (endpoint or key):
            return cls(endpoint=endpoint or Rate(), key=key, runs=runs)
        return replace(cls.BY_CLASS.changed(runs=runs, **rates), endpoint=endpoint or Rate(), key=key)


def short_form(
    limits: Limits | str | None, *, limit: int = 100, window: float = 60.0, scope: Scope = "endpoint"
) -> Limits:
    """Return the limits that the arguments of `Session` describe.

    They are `limits`, or `BY_CLASS` with `limit` requests in `window` seconds for the endpoints without a named
    budget. Raises `InvalidInput` if both forms are given, and for a number that is not positive.
    """
    if scope not in ("endpoint", "key"):
        raise InvalidInput("scope", scope, "is neither 'endpoint' nor 'key'")
    if limit < 1:
        raise InvalidInput("limit", limit, "must be at least 1")
    if not 0 < window < math.inf:
        raise InvalidInput("window", window, "must be more than 0 seconds")
    rate = Rate(limit, window)
    if limits is None:
        return replace(Limits.BY_CLASS, endpoint=rate, key=rate if scope == "key" else None)
    if rate != Rate() or scope != "endpoint":
        raise InvalidInput(
            "limits", str(limits), "replaces rate (limit, window) and scope: give one or the other"
        )
    return Limits.parse(limits) if isinstance(limits, str) else limits


def charged(limits: Limits, endpoint: Endpoint) -> Mapping[str, Rate]:
    """Return the budgets that a request to an endpoint charges, by name."""
    named = {name: limits.budgets[name] for name in endpoint.budgets if name in limits.budgets}
    if named:
        return named
    return {endpoint.key: limits.endpoint} if limits.key is None else {BY_KEY: limits.key}


def _parsed_rate(text: str, name: str, value: str) -> Rate:
    try:
        return parse_rate(value)
    except InvalidInput as error:
        raise InvalidInput(
            "limits", text, f"gives {name!r} the rate {value!r}, which {error.reason}"
        ) from None


def _parsed_runs(text: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or not 0 < len(value) < 10 or int(value) < 1:
        raise InvalidInput("limits", text, f"has runs={value!r}, which must be a whole number of at least 1")
    return int(value)


Limits.PER_ENDPOINT = Limits()
Limits.PER_KEY = Limits(key=Rate())
Limits.BY_CLASS = Limits(
    budgets={
        "reads": Rate(30, 60.0),
        "writes": Rate(10, 60.0),
        "jobs": Rate(5, 3600.0),
        "agent": Rate(5, 3600.0),
        "create": Rate(1, 3600.0),
        "generate": Rate(1, 3600.0),
    },
    runs=3,
)
Limits.PER_MINUTE = Limits.BY_CLASS.changed(reads=Rate(60), writes=Rate(60), jobs=Rate(60))
_PRESETS: Mapping[str, Limits] = {
    "per-endpoint": Limits.PER_ENDPOINT,
    "per-key": Limits.PER_KEY,
    "per-minute": Limits.PER_MINUTE,
    "by-class": Limits.BY_CLASS,
}
