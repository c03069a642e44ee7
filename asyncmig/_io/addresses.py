"""The base URL of the API, and the proxies in the environment."""

import base64
import ipaddress
import os
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final
from urllib.parse import SplitResult, unquote, urlsplit

from yarl import URL

from asyncmig.errors import InvalidInput

__all__ = ["Proxies", "Proxy", "checked_base_url", "is_loopback", "shown_url"]

_PORTS = {"http": 80, "https": 443}
_SYSTEM = "the proxy settings of this system"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = re.compile(r"[\w.:-]+")
_SPACE = re.compile(r"[\s\x00-\x1f\x7f]")


def is_loopback(url: str) -> bool:
    """Return whether `url` leads to this machine, so that plain http is safe and no proxy is needed."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def checked_base_url(url: str, name: str) -> str:
    """Return the base URL in a normal form, in which two spellings of one URL are equal.

    Raises `InvalidInput` if it is not a valid https URL (loopback may be http). `name`: the option or variable, for
    the error. The error shows no credentials.
    """
    url = url.strip()
    parts = _split(url)
    reason = "has no valid host or port" if parts is None else _fault(url, parts)
    if parts is not None and reason is None:
        try:
            return str(URL(url).with_query(None).with_fragment(None)).rstrip("/")
        except ValueError:
            reason = "has a host name that is not valid"
    raise InvalidInput(name, shown_url(url), reason or "")


def _split(url: str) -> SplitResult | None:
    """Return the parts of a URL; None if the URL or its port is not valid."""
    try:
        parts = urlsplit(url)
        return None if parts.port == 0 else parts
    except ValueError:
        return None


def _fault(url: str, parts: SplitResult) -> str | None:
    if not _SCHEME.match(url):
        return "must begin with https:// (on this machine also http://)"
    if _SPACE.search(url):
        return "contains a space or a control character"
    if "@" in url or parts.query or parts.fragment:
        return "must have no credentials, query or fragment"
    if not _HOST.fullmatch(parts.hostname or "") or parts.scheme not in _PORTS:
        return "must be an absolute https URL"
    if parts.scheme == "http" and not is_loopback(url):
        return "must be https: with http, the API key would be sent unencrypted"
    return None


def shown_url(url: str) -> str:
    """Return `url` for an error message, without what may be secret: credentials, query, and what follows a blank."""
    scheme, rest = _parted(url)
    if "@" in rest:
        rest = "***@" + rest.rpartition("@")[2]
    shown = re.split(r"[?#\s]", rest)[0]
    return f"{scheme}{shown}{' ...' if _SPACE.search(rest) else ''}"


def _parted(url: str) -> tuple[str, str]:
    """Return the scheme including `://` (empty if there is none) and the rest."""
    found = _SCHEME.match(url)
    return (found[0], url[found.end() :]) if found else ("", url)


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy."""

    url: URL
    """Without credentials."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """The headers for the proxy, with the credentials of its URL. They are not sent to the server."""


@final
class Proxies:
    """The proxies in the environment, read once; on other systems than Linux also those in the system's settings.

    `HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY` have the form `[http://][user:password@]host[:port]`. Variables with
    lower-case names take precedence. An empty value means no proxy. `NO_PROXY` is a list of exceptions: hosts with
    their subdomains, addresses, networks (`10.0.0.0/8`), each with or without a port, or `*`. Requests to this
    machine never use a proxy.
    """

    __slots__ = ("_exceptions", "_values")

    def __init__(self) -> None:
        found = {kind: value.strip() for kind, value in urllib.request.getproxies().items()}
        self._exceptions = [text.lower() for text in re.split(r"[\s,]+", found.get("no", "")) if text]
        self._values = {
            scheme: (_variable(kind), found[kind])
            for scheme in _PORTS
            for kind in ("all", scheme)
            if found.get(kind)
        }

    def proxy_for(self, url: str) -> Proxy | None:
        """Return the proxy for a request to `url`; None if it uses none.

        Raises `InvalidInput` for a proxy that cannot be used. The error names the variable.
        """
        if not self._values:
            return None
        parts = _split(url)
        if parts is None or not parts.hostname or parts.scheme not in self._values or is_loopback(url):
            return None
        host, port = parts.hostname.rstrip("."), parts.port or _PORTS[parts.scheme]
        if any(_matches(each, host, port) for each in self._exceptions) or urllib.request.proxy_bypass(host):
            return None
        return _parsed(*self._values[parts.scheme])


def _variable(kind: str) -> str:
    """Return the name of the environment variable with a proxy, for errors."""
    names = (f"{kind}_proxy", f"{kind.upper()}_PROXY")
    return next((name for name in names if os.environ.get(name, "").strip()), _SYSTEM)


def _parsed(name: str, value: str) -> Proxy:
    scheme, rest = _parted(value)
    if scheme.lower() not in ("", "http://"):
        reason = "is not supported: only http:// proxies are. NO_PROXY lists the hosts that need no proxy"
        raise InvalidInput(name, f"{scheme}***", reason)
    parts = _split(f"http://{rest}")
    host = parts.hostname or "" if parts is not None else ""
    is_url = scheme or "/" not in rest.rstrip("/")
    if parts is not None and is_url and _HOST.fullmatch(host) and "@" not in rest[len(parts.netloc) :]:
        try:
            return Proxy(URL.build(scheme="http", host=host, port=parts.port), _authorization(parts))
        except ValueError:
            pass
    raise InvalidInput(name, f"{scheme}***", "is not [http://][user:password@]host[:port] (%XX for others)")


def _authorization(parts: SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    text = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def _matches(exception: str, host: str, port: int) -> bool:
    """Return whether an entry of `NO_PROXY` matches this host, by curl's rules."""
    if exception == "*":
        return True
    name, at, wanted = exception.rpartition(":")
    if at and wanted.isdigit() and (":" not in name or name.endswith("]")):
        if int(wanted) != port:
            return False
        exception = name
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(exception.strip("[]"), strict=False)
    except ValueError:
        pass
    domain = exception.removeprefix("*").strip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))
