"""Every error of the library.

    AsyncmigError
    ├── InvalidInput            you asked wrongly: found before a request was spent (also a ValueError)
    ├── UsageError              you asked in the wrong place: outside `async with`, on another loop (RuntimeError)
    ├── WaitTooLong             refused before a wait longer than the caller allowed
    ├── SessionClosed           the session, or its gate, was closed while the call waited
    ├── ApiError                the server said no: method, endpoint, status, the server's text
    │   ├── BadRequest          400, 413, 422: malformed, too large, or a name that is taken
    │   ├── AuthError           401: the key is missing, malformed or revoked
    │   ├── NotFound            404: not in this account
    │   ├── Conflict            409
    │   ├── RateLimited         429
    │   ├── ServerError         5xx
    │   └── UnexpectedReply     any answer that the contract does not describe: a redirect, HTML, cut JSON
    ├── RunError                the run ended otherwise than completed; no request went wrong
    │   ├── RunFailed
    │   └── RunCanceled
    ├── NoAnswer                nobody knows: no answer came (time-out, reset); the request was harmless
    ├── UnknownOutcome          nobody knows: it may have been processed, and repeating it may do it twice
    ├── TruncatedDownload       a download ended early, or has not the rows that the run reported
    ├── WebhookRefused          a webhook that the server did not sign, or that does not fit to the others
    ├── QueueUnavailable        the queue of the workers cannot be used at present: try again later
    └── JournalError            the journal cannot be opened, read or written
        ├── CustomerHeld         another live process works on this company
        └── JournalUnavailable  it is locked, its disk is full, its database is away: try again later

Every error survives `pickle`: its arguments are its signature. None carries a header, a key or a signed URL.
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
    "InvalidInput",
    "JournalError",
    "JournalUnavailable",
    "NoAnswer",
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

_TEMPORARY = frozenset(
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
    """Any error of this library."""


class InvalidInput(AsyncmigError, ValueError):
    """The caller asked for something that the API would refuse; no request was spent."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(field, value, reason)
        self.field = field
        self.value = value
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}={self.value!r}: {self.reason}"


class UsageError(AsyncmigError, RuntimeError):
    """The library was called where it cannot work; the text says what to write instead. Nothing was sent."""


class WaitTooLong(AsyncmigError):
    """The budget would grant this request only after `wait` seconds: longer than `max_wait`. Nothing was sent."""

    def __init__(self, wait: float, max_wait: float) -> None:
        super().__init__(wait, max_wait)
        self.wait = wait
        self.max_wait = max_wait

    def __str__(self) -> str:
        return f"the limit would be free in about {self.wait:.1f} s, more than max_wait={self.max_wait:g} s"


class SessionClosed(AsyncmigError):
    """The session was closed: nothing more is sent."""

    def __init__(self, reason: str = "the session is closed") -> None:
        super().__init__(reason)


class ApiError(AsyncmigError):
    """The server answered, and the answer was not what was asked for.

    `endpoint` is the route template. `text` is the server's own message, or the first 200 characters of a body that
    is not the documented JSON. The other attributes are in no `repr`, and all of them survive `pickle`.
    """

    after_doubt: bool = False
    """Whether the answer to an earlier attempt was lost; that attempt may be the cause of this error."""
    is_documented: bool = False
    """Whether the body has the API's documented form: JSON with an `error`. A proxy's body does not."""
    body: bytes = b""
    """The body as it came, for facts that `text` does not hold: `msgspec.json.decode(error.body)`.

    At most 64 KiB; a larger body is cut. `***` replaces the API key and the secrets of the request. Empty if no body
    came, or if the error was not caused by a reply.
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
    """The request is malformed or too large, or a name is taken. Repeating it gives the same answer."""


class AuthError(ApiError):
    """The API key was refused; every other call with it will be, too."""


class NotFound(ApiError):
    """The company, run, sheet or source is not in this account."""


class Conflict(ApiError):
    """The object exists already, or is not in the state that the request needs."""


class RateLimited(ApiError):
    """The request came over the limit."""


class ServerError(ApiError):
    """The server, or a proxy before it, failed."""


class UnexpectedReply(ApiError):
    """The answer is nothing that the API documents: a redirect, HTML, truncated JSON, a wrong type."""


class RunError(AsyncmigError):
    """A run ended otherwise than completed; `text` is the server's reason."""

    def __init__(self, run_id: str, text: str) -> None:
        super().__init__(run_id, text)
        self.run_id = run_id
        self.text = text

    def __str__(self) -> str:
        return f"run {self.run_id}: {self.text or '(the server gave no reason)'}"


class RunFailed(RunError):
    """The run failed; of an import nothing was inserted, of a destination export some may have been written."""


class RunCanceled(RunError):
    """The run was canceled."""


class NoAnswer(AsyncmigError):
    """No answer came, and repeating the request is harmless."""

    def __init__(self, method: str, endpoint: str, reason: str) -> None:
        super().__init__(method, endpoint, reason)
        self.method = method
        self.endpoint = endpoint
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.method} {self.endpoint}: no answer ({self.reason})"


class UnknownOutcome(AsyncmigError):
    """The server may or may not have done what was asked, and asking again may do it twice.

    `sent` is the body that was sent (never a secret), `advice` how a person can find out.
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
    """A download ended early, or has fewer or more rows than the run reported; no file was left.

    `is_final`: it came the same several times, so that another attempt is unlikely to differ.
    """

    is_final: bool = False

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class WebhookRefused(AsyncmigError):
    """A webhook is not to be believed, or not to be understood; nothing of it was kept.

    `field`: what is wrong, a header (`svix-signature`) or a path in the body (`$.batch.total`). Answer it with 400.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field} {self.reason}"


class QueueUnavailable(AsyncmigError):
    """The queue cannot be used at present; `place` is its kind and host."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(place, reason)
        self.place = place
        self.reason = reason

    def __str__(self) -> str:
        return f"the queue ({self.place}) cannot be used: {self.reason}"


class JournalError(AsyncmigError):
    """The journal cannot be opened, read or written."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"journal {self.path}: {self.reason}"


class CustomerHeld(JournalError):
    """Another live process works on this company, or took it over."""

    def __init__(self, path: str, external_id: str, holder: str) -> None:
        super().__init__(path, f"{external_id} is held by {holder}")
        self.args: tuple[object, ...] = (path, external_id, holder)
        self.external_id = external_id
        self.holder = holder


class JournalUnavailable(JournalError):
    """The journal cannot be used at present: it is locked, its disk is full or broken, or its database is away."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: AuthError,
    404: NotFound,
    409: Conflict,
    413: BadRequest,
    422: BadRequest,
    429: RateLimited,
}


def api_error(method: str, endpoint: str, status: int, text: str) -> ApiError:
    """Return the error that `status` stands for."""
    kind = ServerError if status >= 500 else _BY_STATUS.get(status, UnexpectedReply)
    return kind(method, endpoint, status, text)


def is_temporary(error: OSError) -> bool:
    """Return whether the operating system lacks something that it may have later: space, descriptors, a network."""
    return bool(error.errno) and error.errno in _TEMPORARY
