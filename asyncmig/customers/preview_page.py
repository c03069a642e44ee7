"""The preview of a customer as files: `preview.html` for people, `preview.json` for programs.

The page is one file without scripts and without references to other hosts. Text of cells is escaped, so a cell cannot
add elements to the page. A sheet with many rows is shown in part: its first rows and the rows with flagged cells.
`preview.json` has all rows.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple
from unicodedata import category

import msgspec

from asyncmig.customers.files import write_whole
from asyncmig.customers.previews import FlaggedCell, Preview, PreviewSheet, find_flagged_cells

__all__ = ["PREVIEW_DATA", "PREVIEW_PAGE", "render_preview", "write_preview"]

PREVIEW_PAGE: Final = "preview.html"
PREVIEW_DATA: Final = "preview.json"
_FIRST_ROWS = 200
"""Rows at the top of a sheet that are always shown."""
_MOST_CELLS = 60_000
"""Cells of one sheet in the page; a browser is slow with more."""
_LONGEST = 1000
"""Characters of a cell in the page."""
_PRINTED = 6
"""Columns without flagged cells that are printed of a wide sheet."""
_MOST_LINKS = 12
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_KEPT = frozenset("\t\n\u200c\u200d")
"""Line breaks, and joiners that some scripts need, among the characters that cannot be seen."""
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class _Cells(NamedTuple):
    """The flagged cells of one sheet, by their place in its table."""

    at: Mapping[tuple[int | None, int | None], Sequence[str]]
    """Messages by row and column; None for the header row, or for the column of row numbers."""
    lost: Sequence[str]
    """Messages without a place in the table."""


def write_preview(folder: Path, preview: Preview, *, name: str, external_id: str) -> None:
    """Write `preview.html` and `preview.json` of a customer to its folder. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / PREVIEW_DATA, _data(preview, name, external_id))
    write_whole(folder / PREVIEW_PAGE, render_preview(preview, name=name, external_id=external_id).encode())


def _data(preview: Preview, name: str, external_id: str) -> bytes:
    sheets = [
        {
            "slug": sheet.sheet.id,
            "name": sheet.sheet.name,
            "header": sheet.header,
            "rows": sheet.rows,
            "invalid_cells": sheet.invalid_cells,
        }
        for sheet in preview.sheets
    ]
    content = {
        "schema": 1,
        "external_id": external_id,
        "name": name,
        "invalid_cells": preview.invalid_cells,
        "templates": [{"slug": each.id, "name": each.name} for each in preview.templates],
        "sheets": sheets,
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"


def render_preview(preview: Preview, *, name: str, external_id: str) -> str:
    """Return the preview as HTML that is well-formed XML, too."""
    style = resources.files("asyncmig.customers").joinpath("preview.css").read_text(encoding="utf-8")
    flagged = find_flagged_cells(preview)
    title = f"Preview of {_text(name, 100) or _text(external_id, 100)}"
    sections = [
        _section(number, sheet, _cells(cells))
        for number, (sheet, cells) in enumerate(zip(preview.sheets, flagged.sheets, strict=True), 1)
    ]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>",
            f'<header><h1>{title}</h1><p class="soft">{_text(external_id, 100)}</p>',
            *_summary(preview, is_guess=flagged.is_guess),
            "</header>",
            *sections,
            "</body>\n</html>\n",
        ]
    )


def _summary(preview: Preview, *, is_guess: bool) -> Iterator[str]:
    yield "<p>A sample of what an execution of this run imports. The sample may leave out rows.</p>"
    if count := preview.invalid_cells:
        yield f'<p class="warn">{_counted(count, "cell")} in this sample {_is(count)} flagged.</p>'
    else:
        yield "<p>No cell in this sample is flagged.</p>"
    if is_guess:
        yield (
            '<p class="warn">The server does not say how it counts rows, and several ways fit this sample. '
            "A mark may be one row above or below its cell.</p>"
        )
    shown = {each.sheet.id for each in preview.sheets}
    if absent := [_text(each.name or each.id, 100) for each in preview.templates if each.id not in shown]:
        yield f"<p>Sheets without a sample: {', '.join(absent)}.</p>"
    if not preview.sheets:
        yield "<p>The server sent no sheet.</p>"
    if len(preview.sheets) > 1:
        links = "".join(
            f'<li><a href="#s{number}">{_text(each.sheet.name or each.sheet.id, 100)}</a> '
            f'<span class="soft">{_counted(len(each.invalid_cells), "flagged cell")}</span></li>'
            for number, each in enumerate(preview.sheets, 1)
        )
        yield f"<nav><ul>{links}</ul></nav>"


def _cells(flagged: Sequence[FlaggedCell]) -> _Cells:
    at = defaultdict[tuple[int | None, int | None], list[str]](list)
    lost: list[str] = []
    for row, column, message in flagged:
        words = message or "flagged, without a reason"
        if row is None and column is None:
            lost.append(words)
        else:
            at[row, column].append(words)
    return _Cells(at, lost)


def _section(number: int, sheet: PreviewSheet, cells: _Cells) -> str:
    rows = _shown_rows(sheet, cells)
    about = f"{_counted(len(sheet.rows), 'row')} in the sample, {_counted(len(sheet.header), 'column')}"
    if count := len(sheet.invalid_cells):
        about += f", {_counted(count, 'flagged cell')}"
    parts = [
        f'<section id="s{number}"><h2>{_text(sheet.sheet.name or sheet.sheet.id, 200)}</h2>',
        f'<p class="about">{about}.</p>',
        *_problems(number, sheet, cells, rows),
        *_notes(sheet, cells, rows),
        f'<div class="scroll sheet" tabindex="0">{_table(number, sheet, cells, rows)}</div></section>',
    ]
    return "\n".join(parts)


def _shown_rows(sheet: PreviewSheet, cells: _Cells) -> Sequence[int]:
    """Return the indices of the rows in the page: the first ones, and as many rows with flagged cells as fit."""
    most = max(_FIRST_ROWS // 2, _MOST_CELLS // max(1, len(sheet.header)))
    first = range(min(len(sheet.rows), _FIRST_ROWS, most))
    flagged = sorted({row for row, _ in cells.at if row is not None and row >= len(first)})
    return [*first, *flagged[: most - len(first)]]


def _notes(sheet: PreviewSheet, cells: _Cells, rows: Sequence[int]) -> Iterator[str]:
    if len(rows) < len(sheet.rows):
        first = min(len(rows), _FIRST_ROWS)
        flagged = {row for row, _ in cells.at if row is not None}
        left_out = len(flagged.difference(rows))
        what = (
            "the rows with a flagged cell"
            if not left_out
            else f"{len(rows) - first:,} rows with a flagged cell"
        )
        also = f" and {what}" if flagged else ""
        missing = (
            f" {_counted(left_out, 'row')} with a flagged cell {_is(left_out)} not shown." if left_out else ""
        )
        yield (
            f'<p class="warn">This page shows the first {first:,} rows{also}.{missing} '
            f"{PREVIEW_DATA}, beside this page, has all {len(sheet.rows):,} rows.</p>"
        )
    if len(sheet.header) > _PRINTED:
        yield (
            f'<p class="about paper">Printed: the first {_PRINTED} columns, and those with a flagged cell.</p>'
        )


def _problems(number: int, sheet: PreviewSheet, cells: _Cells, rows: Sequence[int]) -> Iterator[str]:
    """Yield a table of the flagged cells by column and message, and a list of those without a place."""
    groups = defaultdict[tuple[int | None, str], list[int | None]](list)
    for (row, column), messages in sorted(cells.at.items(), key=_order):
        for message in messages:
            groups[column, message].append(row)
    shown = {None, *rows}
    lines = "".join(
        f"<tr><td>{_column_name(sheet, column)}</td><td>{_text(message, _LONGEST)}</td>"
        f'<td class="n">{len(found):,}</td><td>{_links(number, column, found, shown)}</td></tr>'
        for (column, message), found in groups.items()
    )
    if lines:
        heads = '<th>column</th><th>what is wrong</th><th class="n">cells</th><th>rows</th>'
        yield (
            f'<h3>Flagged cells</h3><div class="scroll"><table class="problems"><thead><tr>{heads}</tr></thead>'
            f"<tbody>{lines}</tbody></table></div>"
        )
    items = "".join(f'<li><span class="flag">{_text(each)}</span></li>' for each in cells.lost)
    if items:
        yield f'<p class="about">Flagged, and the server does not say where:</p><ul class="lost">{items}</ul>'
    if lines or items:
        yield "<h3>Sample</h3>"


def _order(item: tuple[tuple[int | None, int | None], Sequence[str]]) -> tuple[int, int]:
    (row, column), _ = item
    return (-1 if column is None else column), (-1 if row is None else row)


def _column_name(sheet: PreviewSheet, column: int | None) -> str:
    if column is None:
        return '<span class="empty">whole row</span>'
    return _text(sheet.header[column], 200) or '<span class="empty">no name</span>'


def _links(number: int, column: int | None, rows: Sequence[int | None], shown: set[int | None]) -> str:
    links = [
        f'<a href="#{_anchor(number, row, column)}">{_row_name(row)}</a>' if row in shown else _row_name(row)
        for row in rows[:_MOST_LINKS]
    ]
    more = len(rows) - len(links)
    return ", ".join(links) + (f" and {more:,} more" if more else "")


def _row_name(row: int | None) -> str:
    return "not in the sample" if row is None else f"{row + 1:,}"


def _anchor(number: int, row: int | None, column: int | None) -> str:
    return f"s{number}r{'' if row is None else row + 1}c{'' if column is None else column + 1}"


def _table(number: int, sheet: PreviewSheet, cells: _Cells, rows: Sequence[int]) -> str:
    flagged = {column for _, column in cells.at}
    more = [
        ' class="more"' if index >= _PRINTED and index not in flagged else ""
        for index in range(len(sheet.header))
    ]
    heads = "".join(
        f"<th{_marked(number, None, column, cells, more[column])}>"
        f"{_text(name, 200)}{_flags(None, column, cells)}</th>"
        for column, name in enumerate(sheet.header)
    )
    lines: list[str] = []
    before = -1
    for index in rows:
        if index > before + 1:
            lines.append(_gap(before + 1, index, len(sheet.header)))
        lines.append(_row(number, sheet, index, cells, more))
        before = index
    if before + 1 < len(sheet.rows):
        lines.append(_gap(before + 1, len(sheet.rows), len(sheet.header)))
    return f"<table><thead><tr><th>row</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _gap(start: int, end: int, columns: int) -> str:
    what = f"row {end:,} is" if end == start + 1 else f"rows {start + 1:,} to {end:,} are"
    return (
        f'<tr><th>…</th><td class="gap" colspan="{max(1, columns)}"><span>{what} not shown</span></td></tr>'
    )


def _row(number: int, sheet: PreviewSheet, index: int, cells: _Cells, more: Sequence[str]) -> str:
    row = sheet.rows[index]
    values = [*row, *([""] * (len(sheet.header) - len(row)))]
    columns = "".join(
        f"<td{_marked(number, index, column, cells, more[column] if column < len(more) else '')}>"
        f"{_text(value)}{_flags(index, column, cells)}</td>"
        for column, value in enumerate(values)
    )
    head = f"<th{_marked(number, index, None, cells, '')}>{index + 1:,}{_flags(index, None, cells)}</th>"
    return f"<tr>{head}{columns}</tr>"


def _marked(number: int, row: int | None, column: int | None, cells: _Cells, otherwise: str) -> str:
    """Return the attributes of a cell: an anchor and a class if it is flagged, `otherwise` if not."""
    if (row, column) not in cells.at:
        return otherwise
    return f' id="{_anchor(number, row, column)}" class="flagged"'


def _flags(row: int | None, column: int | None, cells: _Cells) -> str:
    messages = cells.at.get((row, column), ())
    return "".join(f'<span class="flag">{_text(message)}</span>' for message in messages)


def _text(text: str, longest: int = _LONGEST) -> str:
    """Return text escaped for HTML, at most `longest` characters of it; `�` for characters that cannot be seen."""
    cut = f"{text[:longest]} … ({len(text):,} characters)" if len(text) > longest else text
    cut = cut.replace("\r\n", "\n")
    if not cut.isprintable():
        cut = "".join("\ufffd" if each not in _KEPT and category(each) in _UNSEEN else each for each in cut)
    return escape(cut)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
