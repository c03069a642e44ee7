"""The settings of a worker in environment variables, for SAQ's command."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from asyncmig._core.duration import parse_duration
from asyncmig._core.limits import Limits, Rate, parse_rate, short_form
from asyncmig._core.server_address import is_postgres, parse_server
from asyncmig.customers.answer_rules import read_answer_rules
from asyncmig.customers.options import IfChanged, MigrationOptions
from asyncmig.customers.outcome import Policy, RowFilter
from asyncmig.distributed._job_runner import worker_settings
from asyncmig.errors import InvalidInput
from asyncmig.journal import open_journal
from asyncmig.session import Scope, Session

__all__ = ["migration_options", "settings"]

_T = TypeVar("_T")
_log = logging.getLogger("asyncmig")
_VARIABLES = tuple(
    f"ASYNCMIG_{name}"
    for name in (
        "QUEUE",
        "DATABASE",
        "WINDOW",
        "OUT",
        "CONCURRENCY",
        "RATE",
        "LIMITS",
        "SCOPE",
        "BASE_URL",
        "DECIDE",
        "ANSWERS",
        "CANCEL_BLOCKED_AFTER",
        "FILTER",
        "RETRIES",
        "DELIVER_REJECTED",
        "IF_CHANGED",
        "ROOT",
        "API",
    )
)
_POLICIES: Mapping[str, Policy] = {
    "park": "park",
    "approve-safe": "approve_safe",
    "approve": "approve",
    "reject": "reject",
}
_SCOPES: Mapping[str, Scope] = {"endpoint": "endpoint", "key": "key"}
_FILTERS: Mapping[str, RowFilter] = {"valid": "valid", "all": "all"}
_IF_CHANGED: Mapping[str, IfChanged] = {
    "ignore": "ignore",
    "refuse": "refuse",
    "import-again": "import_again",
}
_YES_OR_NO: Mapping[str, bool] = {
    **dict.fromkeys(("false", "0", "no", "off", "f", "n"), False),
    **dict.fromkeys(("true", "1", "yes", "on", "t", "y"), True),
}


def settings() -> dict[str, object]:
    """Return settings from the environment, for `saq asyncmig.distributed.saq.settings`.

    - `ASYNCMIG_QUEUE`: the URL of a Redis or PostgreSQL.
    - `ASYNCMIG_DATABASE`: the journal, as the address of a PostgreSQL, or as a file if all workers run on one
      machine.
    - `ASYNCMIG_WINDOW`: the URL of a Redis. Without it, the processes do not share the rate limit.
    - `ASYNCMIG_CONCURRENCY` (default 100) and `ASYNCMIG_API` (default `companies`): see `worker_settings`.
    - `ASYNCMIG_LIMITS` (or `ASYNCMIG_RATE`, `ASYNCMIG_SCOPE`), `ASYNCMIG_BASE_URL`, `ASYNCMIG_OUT`: as for
      `asyncmig run`. A job cannot override them, because all jobs of a worker share its session. The send log is in
      the folder `ASYNCMIG_OUT`.
    - `ASYNCMIG_DECIDE`, `ASYNCMIG_ANSWERS`, `ASYNCMIG_CANCEL_BLOCKED_AFTER`, `ASYNCMIG_FILTER`, `ASYNCMIG_RETRIES`,
      `ASYNCMIG_DELIVER_REJECTED`, `ASYNCMIG_IF_CHANGED`: as for `asyncmig run`. A job can override them.
    - `ASYNCMIG_ROOT`: a folder that must contain all input files, after symbolic links are resolved. Set it, because
      a job names the paths of the files that the worker reads.

    Other `ASYNCMIG_...` variables cause a warning. Raises `InvalidInput`.
    """
    ignored = sorted(name for name in os.environ if name.startswith("ASYNCMIG_") and name not in _VARIABLES)
    if ignored:
        _log.warning("a worker ignores %s; it reads %s", ", ".join(ignored), ", ".join(_VARIABLES))
    place, queue = _required("ASYNCMIG_DATABASE"), _required("ASYNCMIG_QUEUE")
    if "://" in place or is_postgres(place):
        parse_server("ASYNCMIG_DATABASE", place, "postgres")
    parse_server("ASYNCMIG_QUEUE", queue)
    if window := os.environ.get("ASYNCMIG_WINDOW"):
        parse_server("ASYNCMIG_WINDOW", window, "redis")
    out, limits = Path(os.environ.get("ASYNCMIG_OUT") or "out"), _limits()
    base_url = os.environ.get("ASYNCMIG_BASE_URL")

    def session() -> Session:
        shared = None
        if window:
            from asyncmig.distributed.redis import RedisWindow

            shared = RedisWindow(window)
        out.mkdir(parents=True, exist_ok=True)
        return Session(base_url=base_url, limits=limits, shared=shared, recent=out / "asyncmig.recent")

    return worker_settings(
        queue,
        session=session,
        journal=lambda: open_journal(place),
        to=out,
        api=os.environ.get("ASYNCMIG_API") or "companies",
        options=migration_options(),
        concurrency=_number("CONCURRENCY", 100, least=1),
    )


def migration_options() -> MigrationOptions:
    """Return the options in the variables, which a job can override. Raises `InvalidInput`."""
    answers = os.environ.get("ASYNCMIG_ANSWERS")
    return MigrationOptions(
        decide=_choice("DECIDE", _POLICIES),
        answers=read_answer_rules(answers) if answers else (),
        cancel_blocked_after=_seconds("CANCEL_BLOCKED_AFTER"),
        row_filter=_choice("FILTER", _FILTERS),
        retries=_number("RETRIES", 0, least=0),
        deliver_rejected=_choice("DELIVER_REJECTED", _YES_OR_NO),
        if_changed=_choice("IF_CHANGED", _IF_CHANGED),
        root=os.environ.get("ASYNCMIG_ROOT") or None,
    )


def _required(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise InvalidInput(name, value, "is not set")
    return value


def _limits() -> Limits:
    scope, name = _choice("SCOPE", _SCOPES), "ASYNCMIG_RATE"
    try:
        rate = parse_rate(os.environ.get(name) or str(Rate()))
        name = "ASYNCMIG_LIMITS"
        limits = os.environ.get(name) or None
        return short_form(limits, limit=rate.limit, window=rate.window, scope=scope)
    except InvalidInput as error:
        raise InvalidInput(name, error.value, error.reason) from None


def _choice(setting: str, choices: Mapping[str, _T]) -> _T:
    """Return the choice that a variable names; the first one if it is not set."""
    name = f"ASYNCMIG_{setting}"
    text = os.environ.get(name) or next(iter(choices))
    if text.lower() not in choices:
        raise InvalidInput(name, text, f"is none of {', '.join(choices)}")
    return choices[text.lower()]


def _seconds(setting: str) -> float | None:
    """Return the seconds of a duration such as `30m`; None if the variable is not set."""
    name = f"ASYNCMIG_{setting}"
    text = os.environ.get(name)
    try:
        return parse_duration(text).seconds if text else None
    except InvalidInput as error:
        raise InvalidInput(name, error.value, error.reason) from None


def _number(setting: str, default: int, *, least: int) -> int:
    name = f"ASYNCMIG_{setting}"
    text = os.environ.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise InvalidInput(name, text, f"must be a number of at least {least}")
    return int(text)
