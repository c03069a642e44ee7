"""`asyncmig config`: the value of each setting and its origin."""

import os
from dataclasses import fields
from pathlib import Path

import typer
from rich.console import Console

from asyncmig._io.addresses import shown_url
from asyncmig.cli.options import environment_name
from asyncmig.cli.output import SCHEMA, print_line, print_table
from asyncmig.cli.settings import (
    PATHS,
    SETTING_NAMES,
    Options,
    Settings,
    source_of,
    written,
)
from asyncmig.jobs.outputs import Outputs
from asyncmig.journal import JournalPlace

__all__ = ["given", "places_of", "print_config"]


def given(context: typer.Context) -> frozenset[str]:
    """Return the names of the settings that the command line, the environment or a file sets."""
    return frozenset(name for name in SETTING_NAMES if source_of(context, name) != "default")


def places_of(context: typer.Context) -> tuple[Outputs, Path | None]:
    """Return where a run would write, and its `root`, for a command that has no options for them."""
    defaults: dict[str, object] = {"out": Settings().out, "journal": Settings().journal}
    defaults |= context.default_map or {}
    given = {name: os.environ.get(environment_name(name)) or defaults.get(name) for name in PATHS}
    paths = {name: Path(str(value)) for name, value in given.items() if value}
    journal = JournalPlace(str(given["journal"])).path
    return Outputs(out=paths["out"], journal=journal, report=paths.get("report")), paths.get("root")


def print_config(data: Console, context: typer.Context, options: Options, *, as_json: bool) -> None:
    """Print the name, value and origin of each setting. The API key is never printed."""
    rows: list[tuple[str, str | None, str]] = []
    for field in fields(Settings):
        value, source = getattr(options, field.name), source_of(context, field.name)
        if field.name == "base_url" and value is None and (url := os.environ.get("VERN_BASE_URL")):
            value, source = url, "VERN_BASE_URL"
        text = None if value is None else written(value)
        shown = shown_url(text) if text and field.name == "base_url" else text
        rows.append((field.name.replace("_", "-"), shown, source))
    has_key = bool(os.environ.get("VERN_API_KEY", "").strip())
    rows.append(("API key", "set" if has_key else "not set", "VERN_API_KEY"))
    if as_json:
        for name, shown, source in rows:
            print_line({"schema": SCHEMA, "setting": name, "value": shown, "from": source})
    else:
        lines = [(name, shown or "-", source) for name, shown, source in rows]
        print_table(data, ("setting", "value", "from"), lines)
