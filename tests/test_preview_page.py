"""The preview as an HTML page: each flagged cell is marked in its place, and the text of cells is escaped."""

import json
import re
from xml.etree import ElementTree

import pytest
from browser import dom_of, needs_browser

from asyncmig.customers.catalog import CatalogueItem
from asyncmig.customers.preview_page import PREVIEW_DATA, PREVIEW_PAGE, render_preview, write_preview
from asyncmig.customers.previews import InvalidCell, Preview, PreviewSheet, find_flagged_cells

HOSTILE = "</td></table><script>alert('1')</script>\"&'\x1b[2J\u202e\x00<img src=http://evil.example/>"


def sheet(rows: int = 5, columns: int = 3, *cells: InvalidCell, name: str = "Contacts") -> PreviewSheet:
    """Return a sheet in which all cells differ."""
    return PreviewSheet(
        sheet=CatalogueItem(id=name.lower(), name=name),
        header=tuple(f"column {number}" for number in range(columns)),
        rows=tuple(tuple(f"{row}x{column}" for column in range(columns)) for row in range(rows)),
        invalid_cells=cells,
    )


def preview(*sheets: PreviewSheet) -> Preview:
    return Preview(sheets=sheets, templates=tuple(each.sheet for each in sheets))


def page(shown: Preview, name: str = "Acme Inc", external_id: str = "acme-1") -> ElementTree.Element:
    html = render_preview(shown, name=name, external_id=external_id)
    doctype, _, rest = html.partition("\n")
    assert doctype == "<!DOCTYPE html>"
    return ElementTree.fromstring(rest)


def text_of(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def flags(root: ElementTree.Element) -> list[ElementTree.Element]:
    return root.findall(".//*[@class='flag']")


@pytest.mark.parametrize("first_row", [0, 1, 2])
@pytest.mark.parametrize("first_column", [0, 1, None])
def test_the_numbers_of_the_first_row_and_column_are_inferred_from_the_messages(
    first_row: int, first_column: int | None
) -> None:
    places = [(1, 1), (2, 0), (3, 2)]
    cells = [
        InvalidCell(
            row=row + first_row,
            column=f" COLUMN {column}" if first_column is None else None,
            column_index=None if first_column is None else column + first_column,
            reason=f"'{row}x{column}' is not a date",
        )
        for row, column in places
    ]
    found = find_flagged_cells(preview(sheet(5, 3, *cells), sheet(2, 2, name="Deals")))
    assert [(cell.row, cell.column) for cell in found.sheets[0]] == places
    assert (found.sheets[1], found.is_guess) == ((), False)


def test_the_number_of_the_first_row_is_inferred_from_the_edges_and_empty_cells() -> None:
    last = sheet(5, 1, InvalidCell(row=6, column="column 0", reason="wrong"))
    assert find_flagged_cells(preview(last)).sheets[0][0].row == 4
    first = sheet(5, 1, InvalidCell(row=0, column="column 0", reason="wrong"))
    assert find_flagged_cells(preview(first)).sheets[0][0].row == 0
    empty = PreviewSheet(
        sheet=CatalogueItem(id="a"),
        header=("a", "b"),
        rows=(("1", "2"), ("3", ""), ("5", "6"), ("7",)),
        invalid_cells=(InvalidCell(row=1, column="b", reason="Required"),),
    )
    assert find_flagged_cells(preview(empty)).sheets[0][0].row == 1


def test_the_page_states_that_the_number_of_the_first_row_is_a_guess() -> None:
    shown = preview(sheet(5, 2, InvalidCell(row=2, column="column 1", reason="is not allowed")))
    assert find_flagged_cells(shown).is_guess
    assert "may be one row above or below" in text_of(page(shown))


def test_each_flagged_cell_is_marked_once_with_its_message() -> None:
    cells = (
        InvalidCell(row=1, column="column 1", reason="'0x1' is too short"),
        InvalidCell(row=1, column="column 1", reason="'0x1' is not unique"),
        InvalidCell(row=2, reason="this row is a duplicate"),
        InvalidCell(column="column 2", reason="all cells are empty"),
        InvalidCell(row=400, column="column 0", reason="outside of the sample"),
        InvalidCell(reason="no place at all"),
        InvalidCell(row=3, column="no such column"),
    )
    root = page(preview(sheet(5, 3, *cells)))
    assert len(flags(root)) == len(cells)
    marked = root.find(".//*[@id='s1r1c2']")
    assert marked is not None
    assert text_of(marked) == "0x1'0x1' is too short'0x1' is not unique"
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    links = [element.get("href", "") for element in root.iter() if element.tag == "a"]
    assert links
    assert {link.removeprefix("#") for link in links} <= ids
    assert "7 cells in this sample are flagged" in text_of(root)
    assert "flagged, without a reason" in text_of(root)


def test_the_text_of_cells_is_escaped() -> None:
    shown = Preview(
        sheets=(
            PreviewSheet(
                sheet=CatalogueItem(id=HOSTILE, name=HOSTILE),
                header=(HOSTILE, HOSTILE),
                rows=((HOSTILE,), (HOSTILE, HOSTILE, HOSTILE)),
                invalid_cells=(
                    InvalidCell(row=1, column=HOSTILE, reason=HOSTILE),
                    InvalidCell(reason=HOSTILE),
                ),
            ),
        ),
        templates=(CatalogueItem(id="b", name=HOSTILE),),
    )
    html = render_preview(shown, name=HOSTILE, external_id=HOSTILE)
    root = page(shown, HOSTILE, HOSTILE)
    assert not {element.tag for element in root.iter()} & {"script", "img", "iframe", "link", "form"}
    assert not [element for element in root.iter() for name in element.attrib if name in ("src", "onclick")]
    assert {element.get("href", "#")[0] for element in root.iter()} == {"#"}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]|url\(|@import", html)
    assert len(flags(root)) == 2


def test_a_long_sheet_is_shown_in_part_with_a_note_of_the_hidden_rows() -> None:
    cells = [
        InvalidCell(row=row + 1, column="column 1", reason=f"'{row}x1' is bad") for row in (0, 250, 9_999)
    ]
    root = page(preview(sheet(10_000, 4, *cells)))
    assert len(flags(root)) == 3
    words = text_of(root)
    assert "first 200 rows and the rows with a flagged cell. preview.json" in words
    assert "has all 10,000 rows" in words
    assert "rows 201 to 250 are not shown" in words
    assert "rows 252 to 9,999 are not shown" in words
    assert len(root.findall(".//tbody/tr")) < 300


def test_a_page_of_many_flagged_wide_rows_stays_small_and_counts_them_all() -> None:
    cells = [
        InvalidCell(row=row + 1, column="column 199", reason=f"'{row}x199' is bad") for row in range(9_000)
    ]
    shown = preview(sheet(9_000, 200, *cells))
    html = render_preview(shown, name="Acme", external_id="acme")
    assert len(html) < 8_000_000
    words = text_of(page(shown))
    assert "9,000 cells in this sample are flagged" in words
    assert "8,700 rows with a flagged cell are not shown" in words


def test_a_preview_without_sheets_or_rows_has_a_page() -> None:
    empty = PreviewSheet(sheet=CatalogueItem(id="a"))
    assert "The server sent no sheet" in text_of(page(Preview()))
    assert "No cell in this sample is flagged" in text_of(page(preview(empty)))
    assert "Sheets without a sample: Deals" in text_of(
        page(Preview(templates=(CatalogueItem(id="d", name="Deals"),)))
    )


def test_both_files_are_written_and_the_data_has_every_row(tmp_path) -> None:
    shown = preview(sheet(300, 2, InvalidCell(row=7, column="column 1", reason="bad")))
    write_preview(tmp_path / "acme", shown, name="Acme", external_id="acme-1")
    data = json.loads((tmp_path / "acme" / PREVIEW_DATA).read_bytes())
    assert (data["schema"], data["external_id"], data["invalid_cells"]) == (1, "acme-1", 1)
    assert len(data["sheets"][0]["rows"]) == 300
    assert data["sheets"][0]["invalid_cells"] == [
        {"row": 7, "column": "column 1", "column_index": None, "reason": "bad"}
    ]
    assert sorted(path.name for path in (tmp_path / "acme").iterdir()) == [PREVIEW_PAGE, PREVIEW_DATA]


@needs_browser
def test_a_browser_shows_every_flagged_cell_without_console_output_or_requests(tmp_path) -> None:
    cells = [
        InvalidCell(row=row + 1, column="column 9", reason=f"'{row}x9' {HOSTILE}") for row in range(0, 900, 9)
    ]
    write_preview(tmp_path, preview(sheet(1_000, 200, *cells)), name=HOSTILE, external_id="acme-1")
    assert dom_of(tmp_path / PREVIEW_PAGE, tmp_path).count(b'class="flagged"') == len(cells)
