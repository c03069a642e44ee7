"""The preview of a customer as files: `preview.html` for people, `preview.json` for programs.

The page is one file without scripts and without references to other hosts. Text of cells is escaped, so a cell cannot
add elements to the page. A sheet with many rows is shown in part: its first rows and the rows with flagged cells.
`preview.json` has all rows.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Final, final
from unicodedata import category

import msgspec

from asyncmig.customers.files import customer_folder, write_whole
from asyncmig.customers.previews import FlaggedCell, Preview, PreviewSheet, find_flagged_cells

__all__ = ["PREVIEW_DATA", "PREVIEW_PAGE", "html_page", "preview_page", "render_preview", "write_preview"]

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
_Place = tuple[int | None, int | None]
"""A row and a column of a table; None for the header row, or for the column of row numbers."""


def html_page(title: str, style: str, body: Iterable[str]) -> str:
    """Return a page without scripts and references to other hosts, as HTML that is well-formed XML, too.

    `title`, `body`: HTML. `style`: CSS.
    """
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def preview_page(out: Path | None, external_id: str) -> Path | None:
    """Return the page with a customer's preview below the output folder; None if there is none."""
    page = None if out is None else customer_folder(out, external_id) / PREVIEW_PAGE
    return page if page is not None and page.is_file() else None


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
    """Return the preview as HTML."""
    style = resources.files("asyncmig.customers").joinpath("preview.css").read_text(encoding="utf-8")
    flagged = find_flagged_cells(preview)
    title = f"Preview of {_text(name, 100) or _text(external_id, 100)}"
    sheets = zip(preview.sheets, flagged.sheets, strict=True)
    body = [
        f'<header><h1>{title}</h1><p class="soft">{_text(external_id, 100)}</p>',
        *_summary(preview, is_guess=flagged.is_guess),
        "</header>",
        *(_Section(number, *each).html() for number, each in enumerate(sheets, 1)),
    ]
    return html_page(title, style, body)


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


@final
class _Section:
    """The part of the page about one sheet. Its table shows the first rows, and as many flagged ones as fit."""

    __slots__ = ("_at", "_lost", "_number", "_rows", "_sheet")

    def __init__(self, number: int, sheet: PreviewSheet, flagged: Sequence[FlaggedCell]) -> None:
        self._number, self._sheet = number, sheet
        self._at: defaultdict[_Place, list[str]] = defaultdict(list)
        """The messages about flagged cells, by their place in the table."""
        self._lost: list[str] = []
        """The messages without a place in the table."""
        for row, column, message in flagged:
            is_lost = row is None and column is None
            (self._lost if is_lost else self._at[row, column]).append(message or "flagged, without a reason")
        most = max(_FIRST_ROWS // 2, _MOST_CELLS // max(1, len(sheet.header)))
        first = range(min(len(sheet.rows), _FIRST_ROWS, most))
        later = sorted(row for row in self._flagged_rows() if row >= len(first))
        self._rows = [*first, *later[: most - len(first)]]
        """The indices of the rows that are shown."""

    def _flagged_rows(self) -> set[int]:
        return {row for row, _ in self._at if row is not None}

    def html(self) -> str:
        sheet = self._sheet
        about = f"{_counted(len(sheet.rows), 'row')} in the sample, {_counted(len(sheet.header), 'column')}"
        if count := len(sheet.invalid_cells):
            about += f", {_counted(count, 'flagged cell')}"
        return "\n".join(
            [
                f'<section id="s{self._number}"><h2>{_text(sheet.sheet.name or sheet.sheet.id, 200)}</h2>',
                f'<p class="about">{about}.</p>',
                *self._problems(),
                *self._notes(),
                f'<div class="scroll sheet" tabindex="0">{self._table()}</div></section>',
            ]
        )

    def _problems(self) -> Iterator[str]:
        """Yield a table of the flagged cells by column and message, and a list of those without a place."""
        groups, shown = defaultdict[tuple[int | None, str], list[int | None]](list), {None, *self._rows}
        for (row, column), messages in sorted(self._at.items(), key=_order):
            for message in messages:
                groups[column, message].append(row)
        lines = "".join(
            f"<tr><td>{self._column_name(column)}</td><td>{_text(message)}</td>"
            f'<td class="n">{len(rows):,}</td><td>{self._links(column, rows, shown)}</td></tr>'
            for (column, message), rows in groups.items()
        )
        if lines:
            heads = '<th>column</th><th>what is wrong</th><th class="n">cells</th><th>rows</th>'
            yield (
                f'<h3>Flagged cells</h3><div class="scroll"><table class="problems"><thead><tr>{heads}</tr></thead>'
                f"<tbody>{lines}</tbody></table></div>"
            )
        items = "".join(f'<li><span class="flag">{_text(each)}</span></li>' for each in self._lost)
        if items:
            yield f'<p class="about">Flagged, and the server does not say where:</p><ul class="lost">{items}</ul>'
        if lines or items:
            yield "<h3>Sample</h3>"

    def _column_name(self, column: int | None) -> str:
        if column is None:
            return '<span class="empty">whole row</span>'
        return _text(self._sheet.header[column], 200) or '<span class="empty">no name</span>'

    def _links(self, column: int | None, rows: Sequence[int | None], shown: set[int | None]) -> str:
        links: list[str] = []
        for row in rows[:_MOST_LINKS]:
            name = "not in the sample" if row is None else f"{row + 1:,}"
            links.append(f'<a href="#{self._anchor(row, column)}">{name}</a>' if row in shown else name)
        more = len(rows) - len(links)
        return ", ".join(links) + (f" and {more:,} more" if more else "")

    def _anchor(self, row: int | None, column: int | None) -> str:
        return f"s{self._number}r{'' if row is None else row + 1}c{'' if column is None else column + 1}"

    def _notes(self) -> Iterator[str]:
        """Yield what the table, or its print, leaves out."""
        rows, total, flagged = self._rows, len(self._sheet.rows), self._flagged_rows()
        if len(rows) < total:
            first = min(len(rows), _FIRST_ROWS)
            also = " and the rows with a flagged cell" if flagged else ""
            missing = ""
            if left_out := len(flagged.difference(rows)):
                also = f" and {len(rows) - first:,} rows with a flagged cell"
                missing = f" {_counted(left_out, 'row')} with a flagged cell {_is(left_out)} not shown."
            yield (
                f'<p class="warn">This page shows the first {first:,} rows{also}.{missing} '
                f"{PREVIEW_DATA}, beside this page, has all {total:,} rows.</p>"
            )
        if len(self._sheet.header) > _PRINTED:
            yield (
                f'<p class="about paper">Printed: the first {_PRINTED} columns, and those with a flagged cell.</p>'
            )

    def _table(self) -> str:
        header, flagged = self._sheet.header, {column for _, column in self._at}
        more = [' class="more"' if n >= _PRINTED and n not in flagged else "" for n in range(len(header))]
        heads = "".join(
            self._cell("th", None, column, _text(name, 200), more[column])
            for column, name in enumerate(header)
        )
        lines: list[str] = []
        next_row = 0
        for index in (*self._rows, len(self._sheet.rows)):
            if index > next_row:
                lines.append(_gap(next_row, index, len(header)))
            if index < len(self._sheet.rows):
                lines.append(self._row(index, more))
            next_row = index + 1
        return f"<table><thead><tr><th>row</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"

    def _row(self, index: int, more: Sequence[str]) -> str:
        row = self._sheet.rows[index]
        values = [*row, *([""] * (len(more) - len(row)))]
        cells = "".join(
            self._cell("td", index, column, _text(value), more[column] if column < len(more) else "")
            for column, value in enumerate(values)
        )
        return f"<tr>{self._cell('th', index, None, f'{index + 1:,}', '')}{cells}</tr>"

    def _cell(self, tag: str, row: int | None, column: int | None, content: str, attributes: str) -> str:
        """Return a cell: with an anchor, a class and its messages if it is flagged, with `attributes` if not."""
        if (row, column) not in self._at:
            return f"<{tag}{attributes}>{content}</{tag}>"
        flags = "".join(f'<span class="flag">{_text(message)}</span>' for message in self._at[row, column])
        return f'<{tag} id="{self._anchor(row, column)}" class="flagged">{content}{flags}</{tag}>'


def _order(item: tuple[_Place, Sequence[str]]) -> tuple[int, int]:
    (row, column), _ = item
    return (-1 if column is None else column), (-1 if row is None else row)


def _gap(start: int, end: int, columns: int) -> str:
    what = f"row {end:,} is" if end == start + 1 else f"rows {start + 1:,} to {end:,} are"
    return (
        f'<tr><th>…</th><td class="gap" colspan="{max(1, columns)}"><span>{what} not shown</span></td></tr>'
    )


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
