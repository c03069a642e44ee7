"""Routes of rows: the preview, downloads and export jobs; and the storage's GET of a download link."""

import gzip
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from asyncmig.simulator.migrations.account import Account, ExportJob, Ids, Migration
from asyncmig.simulator.migrations.tables import Sheet, find_flaws
from asyncmig.simulator.server.messages import PREFIX, Json, Refusal, Reply, Request, json_reply, read_body
from asyncmig.simulator.server.tables import csv_text, zip_bytes

__all__ = ["download", "fetch_link", "preview", "read_export", "start_export"]

_FILTERS = ("valid", "invalid", "all")
_SAMPLE = 20
"""Rows of a sheet in the preview."""
_FILE_LIVES, _LINK_LIVES = 3600.0, 300.0


class _ExportIn(msgspec.Struct, kw_only=True):
    slug: str | None = None
    slugs: list[str] | None = None
    fields: list[str] | None = None
    omit_empty: bool = False


def _sheet(migration: Migration, slug: str) -> Sheet:
    for sheet in migration.grids():
        if sheet.schema.slug == slug:
            return sheet
    raise Refusal(404, "There is no such sheet")


def download(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `GET /migrations/{id}/exports/{slug}.csv`."""
    migration, variants, query = account.find(ids, now), account.variants, request.query
    sheet = _sheet(migration, ids["slug"])
    if not migration.workbook and variants.before_execute == "missing":
        raise Refusal(404, "Nothing was imported yet")
    if sheet.rows and variants.compressed_sheets:
        raise Refusal(409, "This sheet is stored compressed: start an export job")
    rows = sheet.rows
    if "filter" in query and variants.filter == "refused":
        raise Refusal(400, "Unknown parameter: filter", is_avoidable=False)
    if variants.filter == "honoured":
        rows = _filtered(migration, sheet, query.get("filter", "valid"))
    has_coverage = migration.report is not None and migration.report["coverage"] is not None
    places = _chosen_columns(
        sheet, _fields_of(query), omit_empty=query.get("omit_empty") == "true", has_coverage=has_coverage
    )
    headers = {"X-Total-Records": str(len(rows))} if variants.total_records else {}
    body = _csv_of(sheet, places, rows)
    cut = rows and account.rng.random() < variants.cut_downloads
    if "gzip" in request.headers.get("accept-encoding", ""):
        body, headers["Content-Encoding"] = gzip.compress(body, mtime=0), "gzip"
        body = body[:-6] if cut else body
    elif cut:
        body = body[: len(body) // 2]
    return Reply(status=200, body=body, content_type="text/csv", headers=headers)


def _filtered(migration: Migration, sheet: Sheet, wanted: str) -> list[list[str]]:
    if wanted not in _FILTERS:
        raise Refusal(400, f"filter must be one of {', '.join(_FILTERS)}")
    bad = {flaw.row for flaw in find_flaws(migration.grids()) if flaw.slug == sheet.schema.slug}
    return [
        row
        for number, row in enumerate(sheet.rows)
        if wanted == "all" or (number in bad) == (wanted == "invalid")
    ]


def start_export(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `POST /migrations/{id}/exports`."""
    account.require_plan()
    migration, body = account.find(ids, now), read_body(request.body, _ExportIn)
    slugs = body.slugs or ([body.slug] if body.slug else [])
    if not slugs:
        raise Refusal(400, "Give a slug or slugs")
    sheets = [_sheet(migration, slug) for slug in slugs]
    for sheet in sheets:
        _chosen_columns(sheet, body.fields, omit_empty=body.omit_empty, has_coverage=bool(migration.report))
    if not migration.workbook:
        raise Refusal(409, "There is nothing to export")
    if any(now < job.ends_at for job in migration.jobs.values()):
        raise Refusal(409, "An export is already running")
    total = sum(len(sheet.rows) for sheet in sheets)
    queued, seconds = account.pace.draw(total, account.rng)
    ends_at = now + queued + seconds
    job = ExportJob(
        id=account.new_id(),
        slugs=slugs,
        format="zip" if body.slugs else "csv",
        fields=body.fields,
        omit_empty=body.omit_empty,
        total_rows=total,
        runs_from=now + queued,
        ends_at=ends_at,
        expires_at=ends_at + _FILE_LIVES,
        error=migration.next_failure("export"),
    )
    if job.error is None and account.rng.random() < account.variants.failing_jobs:
        job.error = "The export failed"
    migration.jobs[job.id] = job
    path = f"{PREFIX}/migrations/{migration.id}/exports/jobs/{job.id}"
    return account.shown(
        202,
        {
            "job_id": job.id,
            "status": "pending",
            "format": job.format,
            "total_rows": job.total_rows,
            "status_url": path,
        },
    )


def read_export(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `GET /migrations/{id}/exports/jobs/{job_id}`."""
    migration = account.find(ids, now)
    job = migration.jobs.get(ids["job_id"])
    if job is None:
        raise Refusal(404, "Job not found")
    if now >= job.expires_at and account.variants.expired_job == "gone":
        raise Refusal(410, "The export has expired")
    if now >= job.ends_at:
        status = "completed" if job.error is None else "failed"
    else:
        status = "pending" if now < job.runs_from else "running"
    content = _content(migration, job) if status == "completed" else None
    is_linked = job.ends_at + account.variants.late_url <= now < job.expires_at
    share = max(0.0, min(1.0, (now - job.runs_from) / max(job.ends_at - job.runs_from, 1e-9)))
    return account.shown(
        200,
        {
            "job_id": job.id,
            "status": status,
            "format": job.format,
            "rows_processed": int(job.total_rows * share),
            "total_rows": job.total_rows,
            "file_size": None if content is None else len(content),
            "error": job.error if status == "failed" else None,
            "expires_at": account.time_text(job.expires_at),
            "download_url": None if content is None or not is_linked else _link(account, job, content, now),
        },
    )


def _content(migration: Migration, job: ExportJob) -> bytes:
    """Return the file of a job: the sheet, or a ZIP with one CSV for each sheet."""
    files = {
        f"{slug}.csv": _csv_of(
            sheet, _chosen_columns(sheet, job.fields, omit_empty=job.omit_empty), sheet.rows
        )
        for slug in job.slugs
        for sheet in [_sheet(migration, slug)]
    }
    if job.format == "csv":
        return files[f"{job.slugs[0]}.csv"]
    return zip_bytes(files)


def _link(account: Account, job: ExportJob, content: bytes, now: float) -> str:
    """Return a new link to a file, which can be used for some minutes."""
    token = account.new_id()
    kind = "text/csv" if job.format == "csv" else "application/zip"
    account.links[token] = (min(now + _LINK_LIVES, job.expires_at), content, kind)
    if account.variants.download_url == "relative":
        return f"/downloads/{token}"
    folder = "redirect" if account.variants.download_url == "redirect" else "downloads"
    return f"{account.storage_url}/{folder}/{token}"


def fetch_link(account: Account, request: Request, now: float) -> Reply:
    """Respond to a GET of a download link, on the storage's host or, for a relative link, on the API's."""
    _, folder, token = [*request.path.split("/"), "", ""][:3]
    until, content, kind = account.links.get(token, (float("-inf"), b"", ""))
    if folder not in ("downloads", "redirect") or now > until:
        return json_reply(403, {"error": "The link has expired"})
    if folder == "redirect":
        return Reply(status=302, body=b"", headers={"Location": f"{account.storage_url}/downloads/{token}"})
    return Reply(status=200, body=content, content_type=kind)


# The preview, and sheets as CSV


def preview(account: Account, request: Request, ids: Ids, now: float) -> Reply:
    """Respond to `GET /migrations/{id}/preview`."""
    migration = account.find(ids, now)
    if migration.preview is None or now < migration.preview_at + account.variants.lag:
        raise Refusal(404, "There is no preview")
    return account.shown(200, _preview_of(account, migration, migration.preview, request.query))


def _chosen_columns(
    sheet: Sheet, fields: Sequence[str] | None, *, omit_empty: bool, has_coverage: bool = True
) -> list[int]:
    """Return the positions of the columns that a request selects. Raises `Refusal`."""
    places = list(range(len(sheet.header)))
    if fields:
        for name in fields:
            if name not in sheet.header:
                raise Refusal(400, f"unknown_field: {name}", fields={"code": "unknown_field"})
        places = [sheet.header.index(name) for name in fields]
    if omit_empty:
        if not has_coverage:
            raise Refusal(409, "coverage_unavailable", fields={"code": "coverage_unavailable"})
        places = [place for place in places if any(row[place].strip() for row in sheet.rows)]
        if not places:
            raise Refusal(409, "Every column is empty")
    return places


def _fields_of(query: Mapping[str, str]) -> list[str] | None:
    """Return the names in `?fields`."""
    names = [name for name in query.get("fields", "").split(",") if name]
    return names or None


def _preview_of(
    account: Account, migration: Migration, sheets: Sequence[Sheet], query: Mapping[str, str]
) -> Json:
    """Return a sample of what would be imported."""
    variants = account.variants
    flaws = find_flaws(sheets)
    shown: list[Json] = []
    for sheet in sheets:
        size = min(_SAMPLE, len(sheet.rows))
        drawn = (
            account.rng.sample(range(len(sheet.rows)), size) if variants.sample == "drawn" else range(size)
        )
        row_numbers = {row: number for number, row in enumerate(drawn)}
        sample = Sheet(schema=sheet.schema, rows=[sheet.rows[row] for row in drawn])
        places = _chosen_columns(
            sample,
            _fields_of(query),
            omit_empty=query.get("omit_empty") == "true" and bool(sample.rows),
        )
        header = [sheet.header[place] for place in places]
        cells: list[Json] = [
            {
                variants.cell_row: row_numbers[flaw.row] + variants.first_row,
                variants.cell_column: places.index(flaw.column)
                if variants.cell_column == "colIndex"
                else sheet.header[flaw.column],
                variants.cell_reason: flaw.reason,
            }
            for flaw in flaws
            if flaw.slug == sheet.schema.slug and flaw.row in row_numbers and flaw.column in places
        ]
        shown.append(
            {
                "template": {"slug": sheet.schema.slug, "name": sheet.schema.name},
                "rows": [header, *([row[place] for place in places] for row in sample.rows)],
                "invalid_cells": cells,
            }
        )
    return {
        "status": "awaiting_approval",
        "templates": [{"slug": schema.slug, "name": schema.name} for schema in migration.schemas],
        "sheets": shown,
    }


def _csv_of(sheet: Sheet, places: Sequence[int], rows: Iterable[Sequence[str]]) -> bytes:
    """Return some columns and rows of a sheet as CSV with a header."""
    header = [sheet.header[place] for place in places]
    return csv_text(header, ([row[place] for place in places] for row in rows)).encode()
