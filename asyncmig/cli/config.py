"""`asyncmig config`: what a run would be told, and by whom."""

import os
from dataclasses import fields

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncmig._io.addresses import shown_url
from asyncmig.cli.options import Options
from asyncmig.cli.setting_origin import source_of
from asyncmig.cli.settings import Settings, written
from asyncmig.cli.terminal import clean

__all__ = ["print_config"]


def print_config(data: Console, context: typer.Context, options: Options) -> None:
    """Print a table of names, values and sources."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("setting", "value", "from"):
        table.add_column(column, no_wrap=True)
    for field in fields(Settings):
        value, source = getattr(options, field.name), source_of(context, field.name)
        if field.name == "base_url" and value is None and (url := os.environ.get("VERN_BASE_URL")):
            value, source = url, "VERN_BASE_URL"
        shown = "-" if value is None else written(value)
        shown = shown_url(shown) if field.name == "base_url" else shown
        table.add_row(field.name.replace("_", "-"), Text(clean(shown)), Text(source))
    is_set = bool(os.environ.get("VERN_API_KEY", "").strip())
    table.add_row("API key", "set" if is_set else "not set", "VERN_API_KEY")
    data.print(table)
