"""Every error of the library.

Most errors belong to one of three groups. The call was wrong, which is detected before a request is sent. The server
refused the request. Or the outcome of a request is unknown.

```text
AsyncmigError
├── InvalidInput            an argument is wrong; no request was sent (also a ValueError)
│   └── CustomerNotFound    the journal has no customer with this external id
├── UsageError              used outside `async with`, or on another event loop (also a RuntimeError)
├── WaitTooLong             the limit would delay the call longer than `max_wait`
├── NoRunSlot               every run slot of the account is held by a run that waits for a person
├── SessionClosed           the session, or its gate, was closed
├── ApiError                the server refused: method, endpoint, status, the server's text, body
│   ├── BadRequest          400, 413, 422: malformed, too large, or a name that is taken
│   ├── AuthError           401: the key is missing, malformed or revoked
│   ├── NotFound            404, 410: not in this account
│   ├── Conflict            409: exists already, or is in another state
│   ├── RateLimited         429
│   ├── ServerError         5xx
│   └── UnexpectedReply     a response that the API does not document: a redirect, HTML, truncated JSON
├── RunError                a run ended without completing; no request failed
│   ├── RunFailed
│   └── RunCanceled
├── NoAnswer                no response arrived (time-out, reset), and the request is safe to repeat
├── UnknownOutcome          the response was lost, and a repeat may process the request twice
├── TruncatedDownload       a download ended early, or differs from the run's report
├── WebhookRefused          a webhook is not authentic, or contradicts others of its export
├── QueueUnavailable        the workers' queue is unavailable: try again later
└── JournalError            the journal cannot be opened, read or written
    ├── CustomerHeld        another live process works on this customer
    ├── JournalNotFound     there is no journal at this path or URL yet
    └── JournalUnavailable  the journal is locked, its disk is full, or its database is unavailable: try again later
```

```python
async with asyncmig.Session() as session:
    try:
        await session.companies.create(name="Acme", source=specs[0].source, external_id="not valid!")
    except asyncmig.InvalidInput as error:
        print(error.field, error.reason)  # no request was sent
    except asyncmig.UnknownOutcome as error:
        print(error.advice)  # how a person can find out what happened
```

Every error can be pickled: `args` are the arguments of its constructor. No error contains a header, an API key or a
signed URL.
"""

import copy
import errno
from typing import Self

__all__ = [
    "ApiError",
    "AsyncmigError",
    "AuthError",
    "BadRequest",
    "Conflict",
    "CustomerHeld",
    "CustomerNotFound",
    "InvalidInput",
    "JournalError",
    "JournalNotFound",
    "JournalUnavailable",
    "NoAnswer",
    "NoRunSlot",
    "NotFound",
    "QueueUnavailable",
    "RateLimited",
    "RunCanceled",
    "RunError",
    "RunFailed",
    "ServerError",
    "SessionClosed",
    "TruncatedDownload",
    "UnexpectedReply",
    "UnknownOutcome",
    "UsageError",
    "WaitTooLong",
    "WebhookRefused",
    "api_error",
    "is_temporary",
]

_TEMPORARY = frozenset(  # errors of the operating system after which the same call may succeed later
    getattr(errno, name, 0)
    for name in (
        *("EAGAIN", "EBUSY", "EDQUOT", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ENOSPC"),
        *(
            "EHOSTDOWN",
            "EHOSTUNREACH",
            "ENETDOWN",
            "ENETUNREACH",
            "ENOLCK",
            "ENOTCONN",
            "EREMOTEIO",
            "ESTALE",
        ),
        "ETIMEDOUT",
    )
)


class AsyncmigError(Exception):
    """The base of all errors of this library."""


class InvalidInput(AsyncmigError, ValueError):
    """An argument is wrong, so the API would refuse the call. No request was sent.

    `field` names the argument, `value` is its value (`***` for a secret), `reason` says what is wrong.
    """

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(field, value, reason)
        self.field = field
        self.value = value
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}={self.value!r}: {self.reason}"


class CustomerNotFound(InvalidInput):
    """The journal has no customer with this external id."""


class UsageError(AsyncmigError, RuntimeError):
    """The library was used in the wrong place or state. The text says what to do instead. Nothing was sent."""


class WaitTooLong(AsyncmigError):
    """The limit would delay this request for `wait` seconds, longer than `max_wait`. Nothing was sent."""

    def __init__(self, wait: float, max_wait: float) -> None:
        super().__init__(wait, max_wait)
        self.wait = wait
        self.max_wait = max_wait

    def __str__(self) -> str:
        return (
            f"the limit would delay the request for {self.wait:.1f} s, more than max_wait={self.max_wait:g} s"
        )


class NoRunSlot(AsyncmigError):
    """Every run slot of the account is held by a run that waits for a person. Nothing was sent.

    `runs` are the ids of the migrations whose runs wait.
    """

    def __init__(self, runs: tuple[str, ...]) -> None:
        super().__init__(runs)
        self.runs = runs

    def __str__(self) -> str:
        return (
            "every run slot of the account is held by a run that waits for a person: answer or cancel one "
            f"(migrations {', '.join(self.runs)})"
        )


class SessionClosed(AsyncmigError):
    """The session was closed: no further request is sent."""

    def __init__(self, reason: str = "the session is closed") -> None:
        super().__init__(reason)


class ApiError(AsyncmigError):
    """The server responded with something other than the requested result.

    `method` and `endpoint` are the method and route template. `text` is the server's message, or the first 200
    characters of a body that is not the documented JSON. `repr` does not show the other attributes, and `pickle`
    keeps them.
    """

    after_doubt: bool = False
    """Whether the response to an earlier attempt was lost. That attempt may have caused this error."""
    is_documented: bool = False
    """Whether the body has the API's documented form, JSON with an `error`. The body of a proxy does not."""
    body: bytes = b""
    """The body of a refusal (a status outside 2xx), for details that `text` lacks: `msgspec.json.decode(error.body)`.

    It has at most the first 64 KiB. `***` replaces the API key and the secrets of the request. It is empty if no body
    arrived, and for a 2xx response that cannot be decoded, because that may contain a signed URL.
    """

    def __init__(self, method: str, endpoint: str, status: int, text: str) -> None:
        super().__init__(method, endpoint, status, text)
        self.method = method
        self.endpoint = endpoint
        self.status = status
        self.text = text

    def __str__(self) -> str:
        return f"{self.method} {self.endpoint} answered {self.status}: {self.text or '(empty body)'}"

    def with_text(self, text: str) -> Self:
        """Return a copy of this error with another text."""
        copied = copy.copy(self)
        copied.text, copied.args = text, (self.method, self.endpoint, self.status, text)
        return copied


class BadRequest(ApiError):
    """400, 413 or 422: the request is malformed or too large, or a name is taken. A repeat would be refused, too."""


class AuthError(ApiError):
    """401: the server does not accept the API key. It closes the session."""


class NotFound(ApiError):
    """404 or 410: the company, run, sheet, source or file is not in this account, or not any more."""


class Conflict(ApiError):
    """409: the object exists already, or is not in the state that the request needs."""


class RateLimited(ApiError):
    """429: the request exceeded the limit."""


class ServerError(ApiError):
    """5xx: the server, or a proxy in front of it, failed."""


class UnexpectedReply(ApiError):
    """The response is not one that the API documents: a redirect, HTML, truncated JSON, a wrong type."""


class RunError(AsyncmigError):
    """A run ended without completing. `run_id` is its id, and `text` the server's reason."""

    def __init__(self, run_id: str, text: str) -> None:
        super().__init__(run_id, text)
        self.run_id = run_id
        self.text = text

    def __str__(self) -> str:
        return f"run {self.run_id}: {self.text or '(the server gave no reason)'}"


class RunFailed(RunError):
    """The run failed. A failed import inserted nothing; a failed destination export may have written some records."""


class RunCanceled(RunError):
    """The run was canceled."""


class NoAnswer(AsyncmigError):
    """No response arrived, and the request is safe to repeat."""

    def __init__(self, method: str, endpoint: str, reason: str) -> None:
        super().__init__(method, endpoint, reason)
        self.method = method
        self.endpoint = endpoint
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.method} {self.endpoint}: no answer ({self.reason})"


class UnknownOutcome(AsyncmigError):
    """The response was lost: the server may have processed the request, and a repeat may process it twice.

    `sent` is the body that was sent (without secrets); `advice` says how a person can find out what happened.
    """

    def __init__(self, method: str, endpoint: str, reason: str, sent: str, advice: str) -> None:
        super().__init__(method, endpoint, reason, sent, advice)
        self.method = method
        self.endpoint = endpoint
        self.reason = reason
        self.sent = sent
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.method} {self.endpoint}: outcome unknown ({self.reason}). {self.advice}"


class TruncatedDownload(AsyncmigError):
    """A download ended early, or its number of rows differs from the run's report. The incomplete file was deleted.

    `is_final`: the download was wrong in the same way several times, so another attempt is unlikely to differ.
    """

    is_final: bool = False

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class WebhookRefused(AsyncmigError):
    """A webhook is not authentic, cannot be decoded, or contradicts others of its export. Nothing of it was kept.

    `field` names what is wrong: a header (`svix-signature`) or a place in the body (`$.batch.total`). Respond
    with 400.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field} {self.reason}"


class QueueUnavailable(AsyncmigError):
    """The queue is unavailable. `place` is the kind and host of its server."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(place, reason)
        self.place = place
        self.reason = reason

    def __str__(self) -> str:
        return f"the queue ({self.place}) cannot be used: {self.reason}"


class JournalError(AsyncmigError):
    """The journal cannot be opened, read or written. `path` is its path, or its address without secrets."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"journal {self.path}: {self.reason}"


class CustomerHeld(JournalError):
    """Another live process works on this customer. `holder` describes the process."""

    def __init__(self, path: str, external_id: str, holder: str) -> None:
        super().__init__(path, f"{external_id} is held by {holder}")
        self.args: tuple[object, ...] = (path, external_id, holder)
        self.external_id = external_id
        self.holder = holder


class JournalNotFound(JournalError):
    """There is no journal to read at this place yet, or its file is empty."""


class JournalUnavailable(JournalError):
    """The journal is unavailable: it is locked, its disk is full or broken, or its database is unavailable.

    The same call may succeed later.
    """


_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: AuthError,
    404: NotFound,
    409: Conflict,
    410: NotFound,
    413: BadRequest,
    422: BadRequest,
    429: RateLimited,
}


def api_error(method: str, endpoint: str, status: int, text: str) -> ApiError:
    """Return the error for a status outside 2xx."""
    kind = ServerError if status >= 500 else _BY_STATUS.get(status, UnexpectedReply)
    return kind(method, endpoint, status, text)


def is_temporary(error: OSError) -> bool:
    """Return whether the same call may succeed later: the system lacks space, file descriptors, memory or a
    network."""
    return bool(error.errno) and error.errno in _TEMPORARY
