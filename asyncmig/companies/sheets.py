"""Select sheets: all known ones, or some by name, by id or as `Sheet`s."""

from collections.abc import Sequence

from asyncmig.companies.wire import Sheet
from asyncmig.customers.ids import SHEET, checked_id
from asyncmig.customers.lookup import named
from asyncmig.customers.report import ImportReport

__all__ = ["chosen", "known"]


def known(sheets: Sequence[Sheet], report: ImportReport | None) -> list[Sheet]:
    """Return the known sheets, and those that only the report names."""
    ids = {sheet.id for sheet in sheets}
    reported = [
        Sheet(id=count.sheet_id, name=count.template_name or count.sheet_id)
        for count in (report.per_sheet if report else ())
        if count.sheet_id is not None and count.sheet_id not in ids
    ]
    return [*sheets, *{sheet.id: sheet for sheet in reported}.values()]


def chosen(wanted: str | Sheet, among: Sequence[Sheet], field: str) -> Sheet:
    """Return the selected sheet: a `Sheet` unchanged, a text by id or by name.

    If no sheet is known, a text is taken as an id. Raises `InvalidInput` naming `field` if no sheet or several
    have the name.
    """
    if isinstance(wanted, Sheet):
        return wanted
    if not among or not wanted:
        return Sheet(id=checked_id(field, wanted, SHEET))
    return named(field, wanted, among)
