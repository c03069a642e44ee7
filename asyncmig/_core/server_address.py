"""Parses addresses of Redis and PostgreSQL as users write them, and hides their secrets.

A password may contain any character. If a character of it is not percent-encoded, a lenient parser could take a part
of the password for the host, the port or the database. An address is therefore parsed strictly, as the client
libraries parse it, and errors show no part of it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar, final
from urllib.parse import unquote, unquote_plus

from asyncmig.errors import InvalidInput

__all__ = ["Kind", "Server", "is_postgres", "parse_server"]

T = TypeVar("T")
Kind = Literal["redis", "postgres"]
_SCHEMES: dict[str, Kind] = {
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "postgres": "postgres",
    "postgresql": "postgres",
}
_EXAMPLES: dict[Kind, str] = {
    "redis": "the URL of a Redis (redis://HOST:PORT/0, rediss://..., unix:///PATH)",
    "postgres": "the address of a PostgreSQL (postgresql://HOST:PORT/DATABASE, or host=HOST dbname=DATABASE)",
}
_HINT = (
    "is not valid, or has an option that is not; in a user name or a password write % as %25, / as %2F, @ as %40, "
    "# as %23, ? as %3F, [ as %5B"
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LIKE_POSTGRES = re.compile(r"""\s*["']?(jdbc:)?postgres(ql)?(\+\w+)?://""", re.IGNORECASE)
"""A URL of PostgreSQL, also as other programs write it: with the name of a driver, or in quotes."""
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]@#\s]*)(?::(\d{0,5}))?")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_SETTINGS = re.compile(r"\s*(host|hostaddr|port|dbname|user|password|passfile|service|sslmode|options)\s*=")
_SETTING = re.compile(
    r"\s*([^\s='\\]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)?)(?=\s|$)", re.DOTALL
)
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SPACE = re.compile(r"[\s\x00-\x1f\x7f]")


class _Malformed(Exception):
    """The text is not an address. The error contains no part of the text, and may contain a reason."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class Server:
    """The address of a server and its credentials; `str` and `repr` show no secret."""

    kind: Kind
    text: str
    """The address as it was given, including secrets: only for the client library."""
    scheme: str
    host: str
    """The host, with its port if it has one; several are joined by commas. The path of a Unix socket."""
    database: str
    secrets: frozenset[str]

    @property
    def has_secret(self) -> bool:
        """Whether the address contains a password."""
        return bool(self.secrets)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}{'/' if self.database else ''}{self.database}"

    def __repr__(self) -> str:
        return f"<Server {self}>"

    def clean(self, text: str) -> str:
        """Return a text of a client library with `***` for the address and its secrets."""
        for secret in sorted({self.text, *self.secrets} if self.secrets else (), key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def scrub(self, error: BaseException) -> None:
        """Remove the secrets from an error of a client library, and from its causes."""
        seen: set[int] = set()
        left: list[BaseException | None] = [error]
        while left:
            each = left.pop()
            if each is not None and id(each) not in seen:
                seen.add(id(each))
                each.args = tuple(self.clean(arg) if isinstance(arg, str) else arg for arg in each.args)
                if getattr(each, "_pgconn", None) is not None:
                    # psycopg keeps the connection's options, including the password
                    vars(each)["_pgconn"] = None
                left += [each.__cause__, each.__context__]

    def checked(self, field: str, parse: Callable[[str], T]) -> T:
        """Return the result of a client library's parser for the address.

        Raises `InvalidInput` if the parser raises any error.
        """
        with suppress(Exception):  # a library may raise any error
            return parse(self.text)
        # Not inside `except`, where the library's error, which may contain the address, would be its context.
        raise InvalidInput(field, "***", _HINT)


def is_postgres(text: str) -> bool:
    """Return whether a text looks like the address of a PostgreSQL, and not like the path of a file."""
    return bool(_LIKE_POSTGRES.match(text) or _SETTINGS.match(text))


def parse_server(field: str, text: str, *kinds: Kind) -> Server:
    """Return the server with the address `text`.

    `kinds`: the accepted kinds of servers, by default all. Raises `InvalidInput` for an invalid address and for
    another kind of server. The error names `field` and shows no part of the address.
    """
    text, kinds = text.strip(), kinds or ("redis", "postgres")
    scheme = _SCHEME.match(text)
    is_settings = bool(_SETTINGS.match(text)) or (kinds == ("postgres",) and "://" not in text)
    kind: Kind | None = "postgres" if is_settings else None
    if scheme is not None:
        kind = _SCHEMES.get(scheme[1].lower())
    if kind not in kinds:
        shown = f"{scheme[1]}://..." if scheme else "***"
        raise InvalidInput(field, shown, f"must be {' or '.join(_EXAMPLES[kind] for kind in kinds)}")
    try:
        return _read_settings(text) if scheme is None else _read_url(text, scheme)
    except _Malformed as error:
        raise InvalidInput(field, "***", str(error) or _HINT) from None


def _read_url(text: str, scheme: re.Match[str]) -> Server:
    if _SPACE.search(text):
        raise _Malformed
    name, rest = scheme[1].lower(), text[scheme.end() :]
    return _read_redis(text, name, rest) if _SCHEMES[name] == "redis" else _read_postgres(text, rest)


def _read_redis(text: str, scheme: str, rest: str) -> Server:
    """Read a URL as redis-py does, which uses `urllib`."""
    before, _, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    userinfo, _, host = authority.rpartition("@")
    if "#" in rest or "@" in path + query or "[" in userinfo or "]" in userinfo:
        raise _Malformed
    options, secrets = _read_query(query)
    secrets |= _password(userinfo)
    if scheme == "unix":
        if host or not path:
            raise _Malformed
        return Server("redis", text, scheme, host=slash + path, database="", secrets=secrets)
    database = options.get("db", path.strip("/"))
    if database and not database.isdecimal():
        raise _Malformed
    host = _checked_host(host) or "localhost"
    return Server("redis", text, scheme, host=host, database=database, secrets=secrets)


def _read_postgres(text: str, rest: str) -> Server:
    """Read a URL as libpq does: the user name and the password end at the first @, unless a slash precedes it."""
    userinfo, at, others = rest.partition("@")
    if not at or "/" in userinfo:
        userinfo, others = "", rest
    before, _, query = others.partition("?")
    hosts, _, database = before.partition("/")
    if "@" in before or _BAD_ESCAPE.search(rest):
        raise _Malformed
    options, secrets = _read_query(query)
    hosts = ",".join(_checked_host(host) for host in hosts.split(","))
    secrets |= _password(userinfo)
    return _postgres(text, options, host=unquote(hosts), database=unquote(database), secrets=secrets)


def _read_settings(text: str) -> Server:
    """Read `key=value` pairs as libpq does."""
    options = dict(_settings(text))
    secrets = frozenset(value for name, value in options.items() if _is_secret(name) and value)
    return _postgres(text, options, host="", database="", secrets=secrets)


def _settings(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text.rstrip()):
        found = _SETTING.match(text, at)
        if found is None:
            raise _Malformed
        name, quoted, plain = found.groups()
        yield name, re.sub(r"\\(.)", r"\1", quoted if quoted is not None else plain or "", flags=re.DOTALL)
        at = found.end()


def _postgres(
    text: str, options: Mapping[str, str], *, host: str, database: str, secrets: frozenset[str]
) -> Server:
    """Return a server. Its options take precedence over `host` and `database`."""
    host = options.get("host") or options.get("hostaddr") or host
    database = options.get("dbname") or database
    # libpq checks the value only when it connects. Its error would count as an unavailable server.
    if options.get("sslmode", "prefer") not in _SSL_MODES:
        raise _Malformed(f"has an sslmode that is none of {', '.join(_SSL_MODES)}")
    if "@" in host and not host.startswith("@"):  # an abstract socket begins with it
        raise _Malformed
    # libpq would parse it as another address, which may contain other secrets.
    if "://" in database or "=" in database:
        raise _Malformed
    host = _with_ports(host or "localhost", options.get("port", ""))
    return Server("postgres", text, "postgresql", host=host, database=database, secrets=secrets)


def _with_ports(hosts: str, ports: str) -> str:
    """Return hosts with their ports, except the default port. `ports`: one for all hosts, or one for each."""
    if re.fullmatch(r"[0-9,]*", ports) is None:
        raise _Malformed
    given, names = ports.split(","), hosts.split(",")
    if len(given) == 1:
        given *= len(names)
    if ports and len(given) == len(names):
        names = [
            f"{found[1] if (found := _HOST.fullmatch(name)) else name}:{port}" if port else name
            for name, port in zip(names, given, strict=True)
        ]
    return ",".join(name.removesuffix(":5432") for name in names)


def _checked_host(text: str) -> str:
    found = _HOST.fullmatch(text)
    if found is None or int(found[2] or 0) > 65535:
        raise _Malformed
    return text


def _read_query(query: str) -> tuple[dict[str, str], frozenset[str]]:
    """Return the options of a URL, and the secrets among them, both as written and decoded."""
    options: dict[str, str] = {}
    secrets: set[str] = set()
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if not equals:
            raise _Malformed
        name = unquote(name)
        options[name] = unquote(value)
        if _is_secret(name):  # redis-py decodes twice, and decodes + as a space
            secrets |= {value, unquote(value), unquote(unquote_plus(value))}
    return options, frozenset(secrets - {""})


def _password(userinfo: str) -> frozenset[str]:
    password = userinfo.partition(":")[2]
    return frozenset({password, unquote(password)} - {""})


def _is_secret(name: str) -> bool:
    name = name.lower()
    return name != "passfile" and any(word in name for word in ("pass", "secret", "token", "scram_"))
