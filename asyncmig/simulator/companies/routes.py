"""The routes of the API: which of them a request takes, and the ids in its path."""

import re

from asyncmig.simulator.server.messages import Request

__all__ = ["PREFIX", "endpoint_of", "find_route"]

PREFIX = "/api/v1"
"""The path prefix of every route."""
_COMPANY = f"{PREFIX}/companies/(?P<company>[^/]+)"
_RUN = f"{_COMPANY}/imports/(?P<run>[^/]+)"
_ROUTES: list[tuple[str, str, re.Pattern[str]]] = [
    (method, template, re.compile(pattern))
    for method, template, pattern in (
        ("GET", "/companies/{id}/imports/{run_id}", _RUN),
        ("GET", "/companies/{id}/imports", f"{_COMPANY}/imports"),
        ("GET", "/companies/{id}/export.csv", f"{_COMPANY}/export[.]csv"),
        ("POST", "/companies", f"{PREFIX}/companies"),
        ("POST", "/companies/{id}/uploads", f"{_COMPANY}/uploads"),
        ("POST", "/companies/{id}/imports", f"{_COMPANY}/imports"),
        ("POST", "/companies/{id}/imports/{run_id}/decisions", f"{_RUN}/decisions"),
        ("POST", "/companies/{id}/exports", f"{_COMPANY}/exports"),
        ("GET", "/companies/{id}/exports/{run_id}", f"{_COMPANY}/exports/(?P<run>[^/]+)"),
        ("GET", "/sources", f"{PREFIX}/sources"),
        ("GET", "/templates", f"{PREFIX}/templates"),
    )
]


def find_route(request: Request) -> tuple[str, dict[str, str]] | None:
    """Return the template of a request's route, and the ids in its path; None if there is no such route."""
    for method, template, pattern in _ROUTES:
        match = pattern.fullmatch(request.path)
        if match and method == request.method:
            return template, match.groupdict()
    return None


def endpoint_of(request: Request) -> str:
    """Return method and route template of a request; `PUT storage` for an upload."""
    found = find_route(request)
    return f"{request.method} {found[0] if found else 'storage'}"
