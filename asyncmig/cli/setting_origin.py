"""Where a value comes from: the command line, the environment, what a file says, or the default."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import typer

from asyncmig.cli.settings import (
    PATHS,
    LastRun,
    Settings,
    check_journal,
    environment_name,
    recall,
    recall_if_any,
)
from asyncmig.jobs.manifest import Fault, InvalidManifest, read_defaults
from asyncmig.jobs.outputs import Outputs

__all__ = ["from_last_run", "from_last_run_if_any", "from_manifest", "given", "places_of", "source_of"]

_NAMES = [field.name for field in fields(Settings)]


def from_manifest(context: typer.Context, manifest: Path) -> Path:
    """Let the `[defaults]` of a manifest stand where neither the command line nor the environment says more.

    Raises `InvalidManifest` for what is no setting there.
    """
    if not context.resilient_parsing:
        context.default_map = _settings_of(manifest)
    return manifest


def from_last_run(context: typer.Context, journal: Path) -> Path:
    """Let the settings of a journal's last run stand where neither the command line nor the environment says more.

    Raises `JournalError` if there is no such journal, `InvalidInput` if it had no run.
    """
    if not context.resilient_parsing:
        last = recall(journal)
        if last.queue is None:  # else the workers have a journal of their own
            asyncio.run(check_journal(journal))
        _take(context, last)
    return journal


def from_last_run_if_any(context: typer.Context, journal: Path) -> Path:
    """Do the same for a command that can do without: a program of one's own may have written the journal."""
    if not context.resilient_parsing and (last := recall_if_any(journal)):
        _take(context, last)
    return journal


def _take(context: typer.Context, last: LastRun) -> None:
    context.obj, context.default_map = last, dict(last.defaults())


def source_of(context: typer.Context, name: str) -> str:
    """Return where the value of a setting came from, in words."""
    source = context.get_parameter_source(name)
    match source.name if source else "":
        case "COMMANDLINE":
            return "command line"
        case "ENVIRONMENT":
            return environment_name(name)
        case "DEFAULT_MAP":
            return "manifest"
        case _:
            return "default"


def given(context: typer.Context) -> frozenset[str]:
    """Return the settings that the command line, the environment or a file gives."""
    return frozenset(name for name in _NAMES if source_of(context, name) != "default")


def places_of(context: typer.Context) -> tuple[Outputs, Path | None]:
    """Return where a run would write, and the root of its inputs, for a command that has no options for them."""
    defaults: dict[str, object] = {"out": Settings().out, "journal": Settings().journal}
    defaults |= context.default_map or {}
    given = {name: os.environ.get(environment_name(name)) or defaults.get(name) for name in PATHS}
    paths = {name: Path(str(value)) for name, value in given.items() if value}
    return Outputs(out=paths["out"], journal=paths["journal"], report=paths.get("report")), paths.get("root")


def _settings_of(manifest: Path) -> dict[str, str]:
    defaults = {name.replace("-", "_"): value for name, value in read_defaults(manifest).items()}
    faults = tuple(_faults(defaults))
    if faults:
        raise InvalidManifest(str(manifest), faults)
    return {
        name: str(manifest.parent / str(value)) if name in PATHS else str(value)
        for name, value in defaults.items()
    }


def _faults(defaults: dict[str, object]) -> Iterator[Fault]:
    for name, value in defaults.items():
        if name not in _NAMES:
            yield Fault(
                line=None, field=f"defaults.{name}", reason=f"is no setting; there are {', '.join(_NAMES)}"
            )
        elif not isinstance(value, str | int | float):
            reason = f"must be a text, a number, true or false: {value!r}"
            yield Fault(line=None, field=f"defaults.{name}", reason=reason)
