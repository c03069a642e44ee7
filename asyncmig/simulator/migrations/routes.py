"""The routes of the API: path, class of limits, and handler."""

import re
from collections.abc import Callable, Mapping
from urllib.parse import unquote

from asyncmig.simulator.migrations import catalog, exports, files, log, operations, thread
from asyncmig.simulator.migrations.account import Account
from asyncmig.simulator.server.messages import Reply, Request

__all__ = ["CLASSES", "HANDLERS", "PREFIX", "endpoint_of", "find_route"]

PREFIX = "/api/v1"
"""The path prefix of every route."""
Handler = Callable[[Account, Request, Mapping[str, str], float], Reply]
_M = "/migrations/{id}"
_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET /sources", "reads", catalog.list_sources),
    ("PATCH /sources/{source}", "writes", catalog.update_source),
    ("POST /sources/{source}/pin", "writes", catalog.pin_source),
    ("GET /sources/{source}/knowledge", "writes", catalog.source_knowledge),
    ("PATCH /sources/{source}/knowledge", "writes", catalog.write_source_knowledge),
    ("GET /templates", "reads", catalog.list_templates),
    ("GET /templates/{slug}", "reads", catalog.read_template),
    ("PATCH /templates/{slug}", "writes", catalog.update_template),
    ("POST /migrations", "create", files.create_migration),
    (f"POST {_M}/files", "writes", files.create_uploads),
    (f"GET {_M}/files", "reads", files.list_files),
    (f"POST {_M}/source-connection", "writes", files.save_connection),
    (f"GET {_M}/source-connection", "writes", files.read_connection),
    (f"DELETE {_M}/source-connection", "writes", files.delete_connection),
    (f"GET {_M}/knowledge", "writes", catalog.migration_knowledge),
    (f"PATCH {_M}/knowledge", "writes", catalog.write_migration_knowledge),
    (f"POST {_M}/runs", "agent", operations.start_run),
    (f"GET {_M}/runs/{{run_id}}", "reads", operations.read_run),
    (f"PATCH {_M}/runs/{{run_id}}", "reads", operations.cancel_run),
    (f"POST {_M}/runs/{{run_id}}/messages", "agent", operations.answer),
    (f"POST {_M}/runs/{{run_id}}/credentials", "agent", operations.submit_credentials),
    (f"GET {_M}/preview", "reads", operations.preview),
    (f"GET {_M}/thread", "reads", thread.snapshot),
    (f"GET {_M}/thread/stream", "reads", thread.stream),
    (f"GET {_M}/exports/{{slug}}.csv", "reads", exports.download),
    (f"POST {_M}/exports", "jobs", exports.start_export),
    (f"GET {_M}/exports/jobs/{{job_id}}", "reads", exports.read_export),
    (f"GET {_M}/log", "reads", log.read_log),
)
CLASSES: Mapping[str, str] = {endpoint: name for endpoint, name, _ in _ROUTES}
"""By endpoint: its class of limits."""
HANDLERS: Mapping[str, Handler] = {endpoint: handler for endpoint, _, handler in _ROUTES}


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"[{](\w+)[}]", r"(?P<\1>[^/]+)", PREFIX + template.replace(".", "[.]")))


_PATTERNS = [
    (method, template, _pattern(template))
    for method, _, template in (endpoint.partition(" ") for endpoint in HANDLERS)
]


def find_route(request: Request) -> tuple[str, dict[str, str]] | None:
    """Return the template of a request's route, and the decoded ids in its path; None if there is no such route."""
    for method, template, pattern in _PATTERNS:
        match = pattern.fullmatch(request.path)
        if match and method == request.method:
            return template, {name: unquote(text) for name, text in match.groupdict().items()}
    return None


def endpoint_of(request: Request) -> str:
    """Return method and route template of a request; `PUT storage` for an upload."""
    found = find_route(request)
    return f"{request.method} {found[0] if found else 'storage'}"
