"""The sheets of a migration, and the sheets and fields that a call names.

A create response lists the sheets, and no request returns that list again.
"""

from collections.abc import Sequence

from asyncmig._core.arguments import checked_text
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig.customers.catalog import CatalogueItem, named
from asyncmig.errors import Conflict, InvalidInput, NotFound, ServerError
from asyncmig.migrations import routes
from asyncmig.migrations.log import LogOutcome, read_log
from asyncmig.migrations.previews import read_preview
from asyncmig.migrations.wire import Report, Sheet, Templates

__all__ = ["checked_fields", "chosen_sheets", "find_sheets"]


async def find_sheets(
    context: SessionContext, migration_id: str, report: Report | None = None
) -> tuple[Sheet, ...]:
    """Return the sheets of the preview, and those in the report of an execution.

    The preview may be gone after an execution. Then the log has the names of the sheets. Reports and logs have the
    names of templates only, so that the slugs come from the account's templates. Without any name, an executed
    migration has all of them. Raises `NotFound` if there is neither a preview nor an execution.
    """
    found: list[CatalogueItem] = []
    counts = report.per_sheet if report else ()
    names = {count.template_name for count in counts if count.template_name}
    try:
        preview = await read_preview(context, migration_id, {})
        found += [*preview.templates, *(each.sheet for each in preview.sheets)]
    except NotFound:
        if not names:
            executed = await _executed(context, migration_id, is_needed=report is None)
            names = {count.sheet for outcome in executed for count in outcome.per_sheet if count.sheet}
            if report is None and not executed:
                raise
    if not found or names - {each.name for each in found}:
        listed = await context.caller.call(Call(endpoint=routes.LIST_TEMPLATES), Templates)
        found += [each for each in listed.templates if not names or each.name in names]
    return tuple({each.id: Sheet(id=each.id, name=each.name) for each in found}.values())


async def _executed(context: SessionContext, migration_id: str, *, is_needed: bool) -> list[LogOutcome]:
    """Return what the executions in the log did. If the log `is_needed`, raise `ApiError` where it is not there."""
    try:
        log = await read_log(context, migration_id)
    except (Conflict, NotFound, ServerError):
        if is_needed:
            raise
        return []
    return [run.outcome for run in log.runs if run.outcome]


def chosen_sheets(wanted: Sequence[str | Sheet], known: Sequence[Sheet]) -> list[Sheet]:
    """Return the sheets with these names or slugs, each once. Raises `InvalidInput` for an unknown one."""
    if isinstance(wanted, str) or not wanted:
        raise InvalidInput("sheets", wanted, "must be a sequence of sheets, and not empty")
    chosen = [each if isinstance(each, Sheet) else named("sheets", each, known) for each in wanted]
    return list({sheet.id: sheet for sheet in chosen}.values())


def checked_fields(fields: Sequence[str]) -> tuple[str, ...]:
    """Return names of columns as a request can name them. Raises `InvalidInput`."""
    for name in fields:
        if "," in checked_text("fields", name):
            raise InvalidInput("fields", name, "has a comma, which separates the names in a request")
    return tuple(fields)
