"""Verifies that a webhook was signed recently, with the secret.

The scheme is that of Svix (https://docs.svix.com/receiving/verifying-payloads/how-manual). The package
`standardwebhooks` is not used, because it reads the clock itself, accepts only one secret, and raises `ValueError`
for a malformed header. The tests compare the results with it.
"""

import binascii
import hmac
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping

from asyncmig.errors import InvalidInput, WebhookRefused
from asyncmig.webhooks.payload import Event, decode

__all__ = ["TOLERANCE", "receive", "verify"]

TOLERANCE = 300.0
"""Seconds by which a timestamp may differ from `now`, in either direction."""
_PREFIX = "whsec_"
_LONGEST_TIMESTAMP = 12


def receive(body: bytes, headers: Mapping[str, str], secrets: str | Iterable[str], *, now: float) -> Event:
    """Verify and decode a webhook. The arguments are those of `verify`. Raises the errors of `verify` and
    `decode`."""
    return decode(body, message_id=verify(body, headers, secrets, now=now))


def verify(body: bytes, headers: Mapping[str, str], secrets: str | Iterable[str], *, now: float) -> str:
    """Return the `svix-id` of a webhook that was signed with one of `secrets` at most five minutes from `now`.

    - `body`: the raw bytes as they arrived, not parsed and encoded again.
    - `headers`: names in any case.
    - `secrets`: one secret, `whsec_...`, or several while one is being replaced.
    - `now`: seconds since 1970.

    Raises `WebhookRefused`, which names the wrong header, and `InvalidInput` for a malformed secret or a body that is
    not bytes. No error shows a secret or a correct signature.
    """
    _check_types(body, headers, secrets, now)
    keys = [_key(secret) for secret in ((secrets,) if isinstance(secrets, str) else secrets)]
    if not keys:
        raise InvalidInput("secrets", [], "is empty: nothing can be verified")
    message_id, timestamp, given = (
        _header(headers, f"svix-{name}") for name in ("id", "timestamp", "signature")
    )
    _check_time(timestamp, now)
    candidates = _candidates(given)
    signed = f"{message_id}.{timestamp}.".encode(errors="replace") + body
    expected = [b64encode(hmac.digest(key, signed, "sha256")).rstrip(b"=") for key in keys]
    if not any(hmac.compare_digest(mine, theirs) for mine in expected for theirs in candidates):
        raise WebhookRefused("svix-signature", "was not made with the secret over this body")
    return message_id


def _check_types(body: object, headers: object, secrets: object, now: object) -> None:
    if not isinstance(body, bytes):
        reason = "must be the raw bytes that arrived, because they are signed"
        raise InvalidInput("body", type(body).__name__, reason)
    if not hasattr(headers, "items"):  # the headers of some frameworks are not a Mapping
        raise InvalidInput("headers", type(headers).__name__, "must be a mapping of names to values")
    if not isinstance(secrets, Iterable) or isinstance(secrets, bytes):
        raise InvalidInput("secrets", "***", "must be a str, or several of them")
    if not isinstance(now, int | float):
        raise InvalidInput("now", now, "must be seconds since 1970, as from time.time()")


def _key(secret: object) -> bytes:
    """Return the key in a secret. No error shows it."""
    if not isinstance(secret, str) or not secret.startswith(_PREFIX):
        raise InvalidInput("secret", "***", f'must begin with "{_PREFIX}"')
    text = secret.removeprefix(_PREFIX).rstrip("=")
    try:
        key = b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("secret", "***", f'is not base64 after "{_PREFIX}"') from None
    if not key:
        raise InvalidInput("secret", "***", f'is empty after "{_PREFIX}"')
    return key


def _header(headers: Mapping[str, str], name: str) -> str:
    values = {value.strip() for header, value in headers.items() if header.lower() == name} - {""}
    if not values:
        raise WebhookRefused(name, "is missing")
    if len(values) > 1:
        raise WebhookRefused(name, "occurs more than once")
    return values.pop()


def _check_time(timestamp: str, now: float) -> None:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= _LONGEST_TIMESTAMP):
        raise WebhookRefused("svix-timestamp", "is not a number of seconds")
    off = now - int(timestamp)
    if abs(off) > TOLERANCE:
        where = "ago" if off > 0 else "ahead: is this clock right?"
        raise WebhookRefused("svix-timestamp", f"is {abs(off):.0f} s {where}")


def _candidates(given: str) -> list[bytes]:
    """Return the signatures of version 1. The header may also contain signatures of other versions."""
    entries = [entry.partition(",") for entry in given.split()]
    found = [
        text.encode(errors="replace").rstrip(b"=") for version, _, text in entries if version == "v1" and text
    ]
    if not found:
        raise WebhookRefused("svix-signature", 'has no entry "v1,SIGNATURE"')
    return found
