"""The settings of a run, where each value comes from, and `asyncmig config`.

A value comes from the command line, the environment, the `[defaults]` of a manifest, or the default of the option.
"""

import os
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from asyncmig import generations
from asyncmig._core.duration import Duration, parse_duration
from asyncmig._core.limits import Limits
from asyncmig._io.addresses import shown_url
from asyncmig.cli.connection import ConnectionSettings
from asyncmig.cli.options import (
    DEFAULT_JOURNAL,
    ApiOption,
    JournalOption,
    JsonOption,
    ReportOption,
    environment_name,
    setting_option,
    source_of,
)
from asyncmig.cli.output import SCHEMA, data_console, print_line, print_table
from asyncmig.customers.answer_rules import read_answer_rules
from asyncmig.customers.options import MigrationOptions
from asyncmig.customers.outcome import RowFilter
from asyncmig.customers.status import CustomerRecord
from asyncmig.jobs.fleet import WhenHeld
from asyncmig.jobs.manifest import InvalidManifest, ManifestFault, read_defaults
from asyncmig.jobs.outputs import Outputs
from asyncmig.journal import JournalPlace

__all__ = [
    "PATHS",
    "DecideChoice",
    "Display",
    "ManifestArgument",
    "Options",
    "Settings",
    "about_journal",
    "config",
    "given",
    "path_from",
    "places_of",
]

PATHS = frozenset({"answers", "out", "journal", "report", "root"})
"""Settings that are paths. In a manifest they are relative to the manifest's folder."""


def path_from(folder: Path, setting: str, text: str) -> str:
    """Return a setting that is a path relative to `folder`. A journal in a database stays as it is."""
    is_database = setting == "journal" and JournalPlace(text).path is None
    return text if is_database else str(folder / text)


IfChangedChoice = Literal["ignore", "refuse", "import-again"]
DecideChoice = Literal["park", "approve-safe", "approve", "reject"]


def _written(value: object) -> str:
    """Return a value as it is written on a command line."""
    if isinstance(value, Limits):
        return _short_limits(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short_limits(limits: Limits) -> str:
    """Return the shortest text from which `Limits.parse` makes these limits."""
    full = str(limits)
    usual = str(Limits.BY_CLASS).split(",")
    different = ",".join(pair for pair in full.split(",") if pair not in usual)
    texts = ("by-class", "per-minute", "per-endpoint", "per-key", different)
    return next((text for text in texts if text and Limits.parse(text) == limits), full)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ConnectionSettings):
    """The settings of a run: from the command line, the environment or a manifest's `[defaults]`."""

    out: Annotated[
        Path,
        setting_option("out", "FOLDER", "Folder for the sheets (EXTERNAL_ID/SHEET.csv) and report.json."),
    ] = Path("out")
    journal: JournalOption = DEFAULT_JOURNAL
    report: ReportOption = None
    root: Annotated[
        Path | None,
        setting_option(
            "root", "FOLDER", "Refuse input files outside this folder. Symbolic links are resolved first."
        ),
    ] = None
    api: ApiOption = generations.DEFAULT
    decide: Annotated[
        DecideChoice,
        setting_option(
            "decide",
            "park|approve-safe|approve|reject",
            "What to do when a run asks for a decision: park (leave it to a person), approve-safe (approve unless "
            "rows would be lost), approve, or reject.",
        ),
    ] = "park"
    answers: Annotated[
        Path | None,
        setting_option(
            "answers",
            "FILE",
            "TOML file with rules that answer the questions of runs: [[answer]] tables with question, and choose or "
            "text. Only with --api migrations.",
        ),
    ] = None
    cancel_blocked_after: Annotated[
        Duration | None,
        setting_option(
            "cancel_blocked_after",
            "DURATION",
            "Cancel a run that has waited for a person this long, such as 30m, to free its run slot. Only with "
            "--api migrations.",
            parse=parse_duration,
        ),
    ] = None
    filter: Annotated[
        RowFilter,
        setting_option(
            "filter", "valid|all", "Rows to download: valid leaves out rows with a bad cell, all keeps them."
        ),
    ] = "valid"
    retries: Annotated[
        int,
        setting_option(
            "retries", "N", "How often to start a failed import again with the same files.", least=0
        ),
    ] = 0
    deliver_rejected: Annotated[
        bool,
        typer.Option(
            "--deliver-rejected",
            help="Download the sheets of an import whose proposal was rejected.",
            envvar=environment_name("deliver_rejected"),
            show_envvar=False,
        ),
    ] = False
    if_changed: Annotated[
        IfChangedChoice,
        setting_option(
            "if_changed",
            "ignore|refuse|import-again",
            "What to do if the files of a delivered or parked customer have changed: ignore (print a note), refuse, "
            "or import-again (may append rows to those of the first import).",
        ),
    ] = "ignore"
    when_held: Annotated[
        WhenHeld,
        setting_option(
            "when_held",
            "return|wait",
            "What to do with a customer that another process works on: return (leave it pending), or wait (until the "
            "process releases it, and then continue it).",
        ),
    ] = "return"
    concurrency: Annotated[
        int, setting_option("concurrency", "N", "The most customers in progress at the same time.", least=1)
    ] = 500
    max_duration: Annotated[
        Duration | None,
        setting_option(
            "max_duration",
            "DURATION",
            "Stop like Ctrl-C after this time, such as 90s, 45m or 1h30m.",
            parse=parse_duration,
        ),
    ] = None
    stop_after_failures: Annotated[
        int | None,
        setting_option(
            "stop_after_failures", "N", "Stop like Ctrl-C after this many customers have failed.", least=1
        ),
    ] = None

    @property
    def policy(self) -> Literal["park", "approve_safe", "approve", "reject"]:
        """The value of `--decide` under its name in the library."""
        return "approve_safe" if self.decide == "approve-safe" else self.decide

    def migration_options(self, *, retry_failed: bool = False) -> MigrationOptions:
        """Return the options of each migration.

        Raises `InvalidInput` for an unknown API generation, an option that it lacks, and the file of `--answers`.
        """
        generation = generations.find(self.api)
        options = MigrationOptions(
            decide=self.policy,
            answers=() if self.answers is None else read_answer_rules(self.answers),
            cancel_blocked_after=self.cancel_blocked_after.seconds if self.cancel_blocked_after else None,
            row_filter=self.filter,
            retries=self.retries,
            retry_failed=retry_failed,
            deliver_rejected=self.deliver_rejected,
            if_changed="import_again" if self.if_changed == "import-again" else self.if_changed,
            root=self.root,
        )
        generations.check_options(generation, options)
        return options

    def given(self) -> Mapping[str, str]:
        """Return the settings that differ from the defaults, as text for a command line."""
        values = ((field, getattr(self, field.name)) for field in fields(Settings))
        return {field.name: _written(value) for field, value in values if value != field.default}


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """What a command prints while it works."""

    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print events as JSON on stdout, one object per line. Messages go to stderr."
        ),
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only customers that are not delivered.")
    ] = False
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Print each step of each customer; with --json, also each request."
        ),
    ] = False


def about_journal(journal: JournalPlace, command: str, *words: str) -> str:
    """Return the command line of a command that works on a journal, ready to be copied."""
    option = () if journal == DEFAULT_JOURNAL else ("--journal", str(journal))
    return shlex.join(["asyncmig", command, *words, *option])


SETTING_NAMES = [field.name for field in fields(Settings)]


def _from_manifest(context: typer.Context, manifest: Path) -> Path:
    """Use the `[defaults]` of a manifest for options that neither the command line nor the environment sets.

    Raises `InvalidManifest` for unknown settings, and for a `.toml` file that is not TOML.
    """
    if context.resilient_parsing:
        return manifest
    defaults = {name.replace("-", "_"): value for name, value in read_defaults(manifest).items()}
    if faults := tuple(_faults(defaults)):
        raise InvalidManifest(str(manifest), faults)
    context.default_map = {
        name: path_from(manifest.parent, name, str(value)) if name in PATHS else str(value)
        for name, value in defaults.items()
    }
    return manifest


def _faults(defaults: dict[str, object]) -> Iterator[ManifestFault]:
    for name, value in defaults.items():
        if name not in SETTING_NAMES:
            reason = f"is not a setting; there are {', '.join(SETTING_NAMES)}"
        elif not isinstance(value, str | int | float):
            reason = f"must be a string, a number, true or false: {value!r}"
        else:
            continue
        yield ManifestFault(line=None, field=f"defaults.{name}", reason=reason)


ManifestArgument = Annotated[
    Path,
    typer.Argument(
        metavar="MANIFEST",
        help="The customers: CSV with the columns external_id, name, source, templates and files; or TOML with "
        "[[company]].",
        is_eager=True,  # its [defaults] are the defaults of the other options
        callback=_from_manifest,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Settings):
    """The settings, and the manifest that they are for."""

    manifest: ManifestArgument

    @classmethod
    def of(cls, manifest: Path, settings: Settings) -> "Options":
        """Return the settings for a manifest."""
        return cls(
            manifest=manifest, **{field.name: getattr(settings, field.name) for field in fields(Settings)}
        )

    def command(
        self,
        decide: DecideChoice | None = None,
        *,
        queue: str | None = None,
        select: str | None = None,
        explicit: Collection[str] = (),
    ) -> str:
        """Return the command line that continues the run, without the API key; `decide` replaces the setting.

        `queue`, `select`: the options of that name. `explicit`: settings to include even with their default values.
        """
        words = ["asyncmig", "run", str(self.manifest)]
        chosen = replace(self, decide=decide or self.decide)
        texts = {name: _written(getattr(chosen, name)) for name in sorted(explicit)} | dict(chosen.given())
        more = {"queue": queue, "select": select}
        for name, text in {**texts, **{name: text for name, text in more.items() if text}}.items():
            if text != str(False):
                words += [f"--{name.replace('_', '-')}", *([] if text == str(True) else [text])]
        return shlex.join(words)

    def outputs(self, records: Iterable[CustomerRecord]) -> Outputs:
        """Return where the run writes, and the sheets that were delivered to the customers of `records`."""
        known = list(records)
        sheets = [Path(file.path) for record in known for file in getattr(record.outcome, "files", ())]
        return Outputs(
            out=self.out,
            journal=self.journal.path,
            report=self.report,
            customers=frozenset(record.external_id for record in known),
            delivered=tuple(sheets),
        )


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


def config(context: typer.Context, options: Options, as_json: JsonOption = False) -> None:
    """Print each setting of `run` and where its value comes from.

    The API key is not printed, only whether it is set.
    """
    rows: list[tuple[str, str | None, str]] = []
    for field in fields(Settings):
        value, source = getattr(options, field.name), source_of(context, field.name)
        if field.name == "base_url" and value is None and (url := os.environ.get("VERN_BASE_URL")):
            value, source = url, "VERN_BASE_URL"
        text = None if value is None else _written(value)
        shown = shown_url(text) if text and field.name == "base_url" else text
        rows.append((field.name.replace("_", "-"), shown, source))
    has_key = bool(os.environ.get("VERN_API_KEY", "").strip())
    rows.append(("API key", "set" if has_key else "not set", "VERN_API_KEY"))
    if as_json:
        for name, shown, source in rows:
            print_line({"schema": SCHEMA, "setting": name, "value": shown, "from": source})
    else:
        lines = [(name, shown or "-", source) for name, shown, source in rows]
        print_table(data_console(), ("setting", "value", "from"), lines)
