"""What an import brings: the rows of its files or of its body, each with the sheet that they go to."""

from collections.abc import Callable, Iterator

from asyncmig.simulator.bodies import ImportIn
from asyncmig.simulator.company import Company
from asyncmig.simulator.messages import Refusal
from asyncmig.simulator.tables import Table, Unreadable, read_csv, to_table

__all__ = ["take_in"]


def take_in(
    company: Company, body: ImportIn, new_id: Callable[[], str]
) -> list[tuple[Table, list[list[str]]]]:
    """Return the rows that `body` brings, by table: a new one of the company for what fits no template.

    Raises `Unreadable` for bytes that are no CSV or never came, `Refusal` for an upload that is not known.
    """
    return [
        _place(company, header, records, name, new_id) for header, records, name in _contents(company, body)
    ]


def _place(
    company: Company, header: list[str], records: list[list[str]], name: str, new_id: Callable[[], str]
) -> tuple[Table, list[list[str]]]:
    schema, header, rows = to_table(header, records, company.schemas)
    for table in company.tables:
        if schema is not None and table.schema is schema:
            return table, rows
    table = Table(sheet_id=new_id(), name=name.rsplit(".", 1)[0], schema=None, header=header)
    company.tables.append(table)
    return table, rows


def _contents(company: Company, body: ImportIn) -> Iterator[tuple[list[str], list[list[str]], str]]:
    """Yield header, records and name of each file of an import, or of its rows."""
    if body.rows:
        header = list(dict.fromkeys(name for row in body.rows for name in row))
        yield (
            header,
            [["" if row.get(n) is None else str(row[n]) for n in header] for row in body.rows],
            "Rows",
        )
    for file in body.files or ():
        upload = company.uploads.get(file.upload_ref)
        if upload is None:
            raise Refusal(400, "upload_ref is not known")
        if upload.content is None:
            raise Unreadable(f"{upload.name}: its bytes never arrived")
        yield *read_csv(upload.name, upload.content), upload.name
