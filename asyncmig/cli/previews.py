"""Where the previews of customers are: their pages in the output folder, and links to them."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

from asyncmig.customers.file_names import customer_folder
from asyncmig.customers.preview_page import PREVIEW_PAGE
from asyncmig.customers.status import CustomerStatus

__all__ = ["preview_links", "preview_page"]


def preview_page(out: Path | None, external_id: str) -> Path | None:
    """Return the page with a customer's preview below the output folder; None if there is none."""
    page = None if out is None else customer_folder(out, external_id) / PREVIEW_PAGE
    return page if page is not None and page.is_file() else None


def preview_links(out: Path | None, rows: Iterable[CustomerStatus], folder: Path) -> Mapping[str, str]:
    """Return the relative URL of each customer's preview, by external id, for a page in `folder`."""
    pages = ((row.external_id, preview_page(out, row.external_id)) for row in rows)
    return {
        name: quote(Path(os.path.relpath(page, folder)).as_posix())
        for name, page in pages
        if page is not None
    }
