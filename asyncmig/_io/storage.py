"""Reads why an object storage refused an upload: its error code and message, without secrets.

Storages respond in XML (S3, GCS, Azure), JSON (GCS, others), HTML (a proxy) or text. A response may contain the
signed URL, the string to sign, tokens and key ids. Therefore only the code and the first line of the message are
kept, and `***` replaces everything in them that may be a secret.
"""

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast, final
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

import msgspec

__all__ = ["PutReply", "storage_error"]

_LONGEST = 200
_SHORTEST_WORD, _SHORTEST_SECRET = 8, 4
"""The shortest part of the URL that is masked: the length of a word such as `upload`, and of any other part."""
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_XML_CODE = re.compile(rb"<(?:\w+:)?Code>([^<]{1,200})</", re.IGNORECASE)
_XML_MESSAGE = re.compile(rb"<(?:\w+:)?Message\b[^>]{0,200}>\s*([^<]{1,4000})", re.IGNORECASE)
_TITLE = re.compile(rb"<title\b[^>]{0,200}>\s*([^<]{1,1000})", re.IGNORECASE)
_TAG = re.compile(r"<[^>]{0,1000}>?")
_HIDDEN = (
    re.compile(r"(?:string.?to.?sign|canonical.?request).*", re.IGNORECASE | re.DOTALL),
    re.compile(r"\b[a-z][a-z0-9+.-]{0,20}://\S+", re.IGNORECASE),
    re.compile(
        r"(?<![\w-])(?=[\w-]*?(?:signature|sig|token|credential|secret|password|key.?id|accesskey|policy))"
        r"[\w-]++\s*+[=:]\s*\S+",
        re.IGNORECASE,
    ),
    re.compile(r"(?<![\w+/=%.~-])(?=[\w+/=%.~-]*[0-9])[\w+/=%.~-]{16,}", re.ASCII),
    re.compile(r"(?<![\w+/=])[A-Z0-9+/=]{16,}(?!\w)", re.ASCII),
    re.compile(r"(?<![\w+/=-])[\w+/=-]{40,}", re.ASCII),
)
"""Texts that are masked: the string to sign, URLs, named secrets, and words as long as a key or a signature.

Each pattern reads a text in linear time, so that a hostile text does not block the event loop.
"""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PutReply:
    """The answer of a storage to a PUT."""

    status: int
    code: str = ""
    """The storage's error code, such as `EntityTooLarge`; empty if it has none."""
    message: str = ""
    retry_after: float = 0.0
    """The seconds of its `Retry-After`; 0 without one."""

    @property
    def reason(self) -> str:
        """The code and the message as one text; empty if there is neither."""
        return ": ".join(part for part in (self.code, self.message) if part)


def storage_error(status: int, body: bytes, url: str, *, retry_after: float = 0.0) -> PutReply:
    """Return the code and the message of a refusal. They contain no part of `url`, the signed URL."""
    code, message = _read(body)
    secrets = _secrets(url)
    shown = _shown(code, secrets)
    return PutReply(
        status=status,
        code=shown if _CODE.fullmatch(shown) else "",
        message=_shown(message, secrets),
        retry_after=retry_after,
    )


def _read(body: bytes) -> tuple[str, str]:
    """Return the code and the message of a body, in any of the formats."""
    text = body.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith((b"{", b"[")):
        try:
            return _read_json(msgspec.json.decode(text))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return "", ""
    code, message = (_found(pattern, text) for pattern in (_XML_CODE, _XML_MESSAGE))
    if code or message or not text.startswith(b"<"):
        return code, message or ("" if code else text.decode("utf-8", "replace"))
    return "", _found(_TITLE, text)


def _found(pattern: re.Pattern[bytes], text: bytes) -> str:
    found = pattern.search(text)
    return html.unescape(found[1].decode("utf-8", "replace")).strip() if found else ""


def _read_json(value: object) -> tuple[str, str]:
    if isinstance(value, list) and value:
        value = cast("list[object]", value)[0]
    if not isinstance(value, dict):
        return "", ""
    fields = cast("dict[object, object]", value)
    inner = fields.get("error", fields.get("Error"))
    if isinstance(inner, dict):
        fields = cast("dict[object, object]", inner)
    texts = {str(name).lower(): each for name, each in fields.items() if isinstance(each, str)}
    code = next((texts[name] for name in ("code", "status", "reason", "error") if name in texts), "")
    message = next((texts[name] for name in ("message", "error_description", "detail") if name in texts), "")
    if not _CODE.fullmatch(code):
        code, message = "", message or code
    return code, message


def _secrets(url: str) -> list[str]:
    """Return the parts of a signed URL that must be masked, the longest first."""
    parts = urlsplit(url)
    values = [value for _, value in parse_qsl(parts.query, keep_blank_values=False)]
    plain = [url, parts.query, parts.path, parts.netloc, *parts.path.split("/"), *values]
    forms = {form for text in plain for form in _written(text)}
    telling = [
        each for each in forms if len(each) >= (_SHORTEST_WORD if each.isalpha() else _SHORTEST_SECRET)
    ]
    return sorted(telling, key=len, reverse=True)


def _written(text: str) -> Iterable[str]:
    return text, unquote(text), quote(text, safe=""), quote_plus(text), html.escape(text)


def _shown(text: str, secrets: Iterable[str]) -> str:
    """Return the first line of a text without secrets, markup and control characters; at most 200 characters."""
    text = _TAG.sub(" ", text[: _LONGEST * 20]).strip()
    for secret in secrets:
        text = text.replace(secret, "***")
    for pattern in _HIDDEN:
        text = pattern.sub("***", text)
    line = next((line for line in text.splitlines() if line.strip()), "")
    return "".join(each if each.isprintable() else " " for each in line).strip()[:_LONGEST]
