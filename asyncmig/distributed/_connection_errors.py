"""Why a server cannot be used, in fixed texts: the messages of client libraries may contain parts of its URL."""

import errno
import re
import socket
import ssl
from collections.abc import Iterator

from asyncmig._core.server_address import Server

__all__ = ["place_of", "reason_of"]

_SILENT = "it does not answer"
_KINDS = {"redis": "Redis", "postgres": "PostgreSQL"}
_BY_ERRNO = {
    errno.ECONNREFUSED: "it refuses connections",
    errno.ECONNRESET: "it closes connections at once",
    errno.EHOSTUNREACH: "there is no route to its host",
    errno.ENETUNREACH: "there is no route to its host",
    errno.ETIMEDOUT: _SILENT,
}
_BY_TEXT = (
    (r"invalid response|expected authentication|protocol error", "{protocol}"),
    (r"refused", "it refuses connections"),
    (
        r"name or service|translate host|resolve|nodename|getaddrinfo|no address associated",
        "its host is unknown",
    ),
    (
        r"password|wrongpass|noauth|authenticat|no pg_hba|role .* does not exist|noperm",
        "it refuses the user or the password",
    ),
    (r"ssl|tls|certificate|wrong.version", "the TLS handshake with it fails"),
    (r"database .* does not exist|db index is out of range|invalid db", "it has no such database"),
    (r"starting up|shutting down|loading the dataset|recovery", "it is starting or stopping"),
    (r"too many (clients|connections)|max number of clients", "it has too many connections"),
    (r"time(d )?.?out", _SILENT),
    (r"no such file", "its socket does not exist"),
    (
        r"invalid .*value|connection option|syntax error|client names",
        "its address has an option that is not valid",
    ),
    (r"definition of service", "its address names a service that is not defined"),
    (
        r"protocol|invalid response|closed the connection|connection closed|reset by peer|unexpected",
        "{protocol}",
    ),
)


def place_of(server: Server) -> str:
    """Return the kind and the host of a server."""
    return f"{_KINDS[server.kind]} at {server.host}"


def reason_of(error: BaseException, server: Server, *, was_used: bool = False) -> str:
    """Return why a server cannot be used, without any part of its URL.

    `was_used`: whether the server was used before. Then it is certainly a server of the right kind.
    """
    protocol = f"it does not speak the protocol of {_KINDS[server.kind]}, or only with other settings of TLS"
    reason = _reason(error, server).format(protocol="it closed the connection" if was_used else protocol)
    # A Redis without TLS does not answer a TLS handshake: it waits for the end of a line.
    without_tls = server.scheme == "rediss" and reason == _SILENT
    return f"{reason}, or not with TLS" if without_tls else reason


def _reason(error: BaseException, server: Server) -> str:
    chain = list(_chain(error))
    for each in chain:
        if isinstance(each, socket.gaierror):
            return "its host is unknown"
        if isinstance(each, ssl.SSLError):
            return "the TLS handshake with it fails"
    for each in chain:
        if isinstance(each, OSError) and each.errno in _BY_ERRNO:
            return _BY_ERRNO[each.errno]
        if isinstance(each, FileNotFoundError | PermissionError):
            what = "its socket" if server.host.startswith("/") else "a file that its address names"
            return (
                f"{what} {'does not exist' if isinstance(each, FileNotFoundError) else 'may not be opened'}"
            )
    for each in chain:
        text = re.sub(
            r"\"[^\"]*\"", "", f"{type(each).__name__} {each}"
        )  # quoted names of hosts, users and databases
        for pattern, reason in _BY_TEXT:
            if re.search(pattern, text, re.IGNORECASE):
                return reason
    return f"the connection failed with {type(error).__name__}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
