"""How sheets are downloaded: one as CSV, or all of them in an archive."""

import csv
import gzip
import io
import zipfile
from collections.abc import Sequence

from asyncmig.simulator.messages import Reply
from asyncmig.simulator.tables import Table, find_flaws

__all__ = ["archive_reply", "csv_reply"]


def archive_reply(tables: Sequence[Table], *, only_valid: bool) -> Reply:
    """Return a ZIP of all sheets of a company."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        for table in tables:
            content.writestr(f"{table.name}.csv", _render(tables, table, only_valid))
    return Reply(status=200, body=archive.getvalue(), content_type="application/zip")


def csv_reply(tables: Sequence[Table], table: Table, *, only_valid: bool, compressed: bool) -> Reply:
    """Return one sheet of a company; its links go to the others."""
    content = _render(tables, table, only_valid)
    if not compressed:
        return Reply(status=200, body=content, content_type="text/csv")
    body = gzip.compress(content, mtime=0)
    return Reply(status=200, body=body, content_type="text/csv", headers={"Content-Encoding": "gzip"})


def _render(tables: Sequence[Table], table: Table, only_valid: bool) -> bytes:
    bad: set[int] = set()
    if only_valid:
        bad = {n for flaw in find_flaws(tables) if flaw.sheet_id == table.sheet_id for n in flaw.rows}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table.header)
    writer.writerows(row for n, row in enumerate(table.rows) if n not in bad)
    return text.getvalue().encode()
