"""An export as signed webhooks: batches, flat or nested, in any order, with bad copies; and their delivery."""

import asyncio
import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import cast

import aiohttp

from asyncmig.simulator.companies.tables import Table, find_flaws
from asyncmig.simulator.server.messages import Json, drifted

__all__ = ["DEFECTS", "Webhook", "Workbook", "disordered", "export_webhooks", "send", "sign"]


_ROOTS = 50
"""Largest number of roots in a nested batch."""
_TARGET = 256 * 1024
DEFECTS = ("wrong-key", "other-body", "late", "early", "no-signature", "malformed-signature")
"""Defects that a copy of a webhook can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbook:
    """The data of a company that an export sends."""

    id: str
    company_name: str
    external_id: str | None
    tables: Sequence[Table]


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """One event. Each delivery of it is signed again."""

    id: str
    body: bytes
    defect: str = ""
    """One of `DEFECTS`, or nothing."""

    def headers(self, secret: str, now: float) -> dict[str, str]:
        """Return the headers and the body of a delivery at `now`, in seconds since 1970."""
        at = int(now + {"late": -301.0, "early": 302.0}.get(self.defect, 0.0))
        key = "whsec_c29tZWJvZHkgZWxzZQ==" if self.defect == "wrong-key" else secret
        body = self.body + b" " if self.defect == "other-body" else self.body
        signature = {
            "no-signature": "",
            "malformed-signature": "v1 nonsense,,, v1,",
        }.get(self.defect, f"v1a,another== {sign(key, self.id, at, body)}")
        return {"svix-id": self.id, "svix-timestamp": str(at), "svix-signature": signature}


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature header's entry for a body."""
    key = b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, "sha256")
    return f"v1,{b64encode(digest).decode()}"


def export_webhooks(
    workbook: Workbook,
    *,
    rng: Random,
    nested: bool = False,
    preview: bool = False,
    first_index: int = 0,
    target: int = _TARGET,
    drift: bool = False,
) -> list[Webhook]:
    """Return an export as webhooks, in order.

    `target`: the size in bytes that a batch's rows aim at. `first_index`: the first batch index, 0 or 1. `drift`:
    numbers as text and unknown fields, as a later version may send them.
    """
    parts = list(_nested(workbook, target) if nested else _flat(workbook, target)) or [{}]
    frame: Json = {
        "event": "workbook.preview.export" if preview else "workbook.production.export",
        "version": "2.0" if nested else "1.0",
        "workbook_id": workbook.id,
        "external_id": workbook.external_id,
    }
    if nested:
        frame |= {"company_name": workbook.company_name, "export_mode": "nested"}
    batch = {"id": f"{rng.getrandbits(64):016x}", "total": len(parts), "size": len(parts)}
    webhooks: list[Webhook] = []
    for index, part in enumerate(parts, first_index):
        place = {**batch, "index": index, "timestamp": "2026-01-01T00:00:00Z"}
        head: Json = {**frame, "batch": place} | ({"root_sheets": list(part)} if nested else {})
        if drift:
            head = {name: drifted(value) for name, value in head.items()} | {"nobody_knows": {"since": "v2"}}
        rows: Json = {"data": part} if nested else {"sheets": list(part.values())}
        webhooks.append(Webhook(id=f"msg_{rng.getrandbits(64):016x}", body=json.dumps(head | rows).encode()))
    return webhooks


def disordered(
    sent: Iterable[Webhook], *, rng: Random, twice: float = 0.3, defects: Iterable[str] = ()
) -> list[Webhook]:
    """Return webhooks in any order, with a share of them repeated, and one more copy for each of `defects`."""
    sent = list(sent)
    again = [webhook for webhook in sent if rng.random() < twice]
    bad = [replace(rng.choice(sent), defect=defect) for defect in defects]
    mixed = sent + again + bad
    rng.shuffle(mixed)
    return mixed


# Rows


def _rows(workbook: Workbook) -> dict[str, list[Json]]:
    """Return the rows of each sheet by its id, with their errors."""
    errors: dict[tuple[str, int], list[Json]] = {}
    for flaw in find_flaws(workbook.tables):
        for n in flaw.rows:
            errors.setdefault((flaw.sheet_id, n), []).append({"column": flaw.column, "error": flaw.kind})
    return {
        table.sheet_id: [
            {
                **dict(zip(table.header, cells, strict=False)),
                "errors": errors.get((table.sheet_id, n), []),
                "row_index": n,
            }
            for n, cells in enumerate(table.rows)
        ]
        for table in workbook.tables
    }


def _flat(workbook: Workbook, target: int) -> Iterator[Json]:
    rows, part, size = _rows(workbook), dict[str, list[Json]](), 0
    names = {table.sheet_id: table.name for table in workbook.tables}
    for sheet_id, each in rows.items():
        for row in each:
            length = len(json.dumps(row))
            if part and size + length > target:
                yield _sheets(part, names)
                part, size = {}, 0
            part.setdefault(sheet_id, []).append(row)
            size += length
    if part:
        yield _sheets(part, names)


def _sheets(part: dict[str, list[Json]], names: dict[str, str]) -> Json:
    return {
        sheet_id: {
            "id": sheet_id,
            "name": names[sheet_id],
            "row_count": len(rows),
            "start_row_index": rows[0]["row_index"],
            "end_row_index": rows[-1]["row_index"],
            "data": rows,
        }
        for sheet_id, rows in part.items()
    }


def _nested(workbook: Workbook, target: int) -> Iterator[Json]:
    part, roots, size = dict[str, list[Json]](), 0, 0
    for name, root in _roots(workbook):
        length = len(json.dumps(root))
        if part and (roots == _ROOTS or size + length > target):
            yield dict(part)
            part, roots, size = {}, 0, 0
        part.setdefault(name, []).append(root)
        roots, size = roots + 1, size + length
    if part:
        yield dict(part)


def _roots(workbook: Workbook) -> list[tuple[str, Json]]:
    """Return the sheet and row of each root. A row whose link names a row of an earlier sheet is its child."""
    rows, roots = _rows(workbook), list[tuple[str, Json]]()
    named: dict[tuple[str, str, object], Json] = {}
    for table in workbook.tables:
        columns = table.schema.columns if table.schema else ()
        links = [(*column.link, column.name) for column in columns if column.link]
        for row in rows[table.sheet_id]:
            found = (named.get((schema, target, row[name])) for schema, target, name in links)
            parent = next((each for each in found if each is not None), None)
            if parent is None:
                roots.append((table.name, row))
            else:
                _adopt(parent, table.name, row)
        schema_id = table.schema.id if table.schema else ""
        for row in rows[table.sheet_id]:
            for column in columns:
                named.setdefault((schema_id, column.name, row[column.name]), row)
    return roots


def _adopt(parent: Json, name: str, row: Json) -> None:
    children = cast("dict[str, list[Json]]", parent.setdefault("children", {}))
    children.setdefault(name, []).append(row)


_PATIENCE = aiohttp.ClientTimeout(total=15.0)


async def send(
    url: str,
    webhooks: Iterable[Webhook],
    *,
    secret: str,
    clock: Callable[[], float],
    attempts: int = 3,
    pause: float = 5.0,
) -> list[list[int]]:
    """Post each webhook to `url` until the response is 2xx, at most `attempts` times, `pause` seconds apart.

    `clock` returns seconds since 1970, for the signatures. Returns the statuses of each webhook; 0 for no
    response.
    """
    found: list[list[int]] = []
    async with aiohttp.ClientSession(timeout=_PATIENCE) as http:
        for webhook in webhooks:
            statuses: list[int] = []
            while len(statuses) < attempts and not (statuses and 200 <= statuses[-1] < 300):
                if statuses:
                    await asyncio.sleep(pause)
                headers = {**webhook.headers(secret, clock()), "Content-Type": "application/json"}
                statuses.append(await _post(http, url, webhook.body, headers))
            found.append(statuses)
    return found


async def _post(http: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str]) -> int:
    try:
        async with http.post(url, data=body, headers=headers, allow_redirects=False) as response:
            return response.status
    except (aiohttp.ClientError, TimeoutError):
        return 0
