"""The settings of the commands: options, environment variables, and the `[defaults]` of a manifest."""

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal, Never, cast

import typer
from typer.models import OptionInfo

from asyncmig import generations
from asyncmig._core.limits import Limits
from asyncmig.cli.connection import ConnectionSettings
from asyncmig.cli.options import (
    Duration,
    duration_option,
    environment_name,
    parse_duration,
    parse_rate,
    setting_option,
)
from asyncmig.customers.answer_rules import read_answer_rules
from asyncmig.customers.options import MigrationOptions
from asyncmig.customers.outcome import RowFilter
from asyncmig.customers.status import CustomerRecord
from asyncmig.errors import InvalidInput
from asyncmig.jobs.fleet import WhenHeld
from asyncmig.jobs.manifest import InvalidManifest, ManifestFault, read_defaults
from asyncmig.jobs.outputs import Outputs
from asyncmig.journal import JournalPlace

__all__ = [
    "DEFAULT_JOURNAL",
    "PATHS",
    "SETTING_NAMES",
    "DecideChoice",
    "Display",
    "JournalOption",
    "JsonOption",
    "ManifestArgument",
    "Options",
    "Settings",
    "about_journal",
    "from_manifest",
    "journal_option",
    "path_from",
    "read_settings",
    "source_of",
    "written",
]


PATHS = frozenset({"answers", "out", "journal", "report", "root"})
"""Settings that are paths. In a manifest they are relative to the manifest's folder."""


def path_from(folder: Path, setting: str, text: str) -> str:
    """Return a setting that is a path relative to `folder`. A journal in a database stays as it is."""
    is_database = setting == "journal" and JournalPlace(text).path is None
    return text if is_database else str(folder / text)


IfChangedChoice = Literal["ignore", "refuse", "import-again"]
DecideChoice = Literal["park", "approve-safe", "approve", "reject"]


def written(value: object) -> str:
    """Return a value as it is written on a command line."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def journal_option(callback: Callable[[typer.Context, JournalPlace], None] | None = None) -> OptionInfo:
    """Return the `--journal` option; `callback` can take the other settings from the journal's last run."""

    def checked(context: typer.Context, place: JournalPlace) -> JournalPlace:
        place = _without_password(context, place)
        if callback is not None and not context.resilient_parsing:
            callback(context, place)
        return place

    words = "The state of every customer: a file, a postgresql:// URL, or an environment variable with such a URL."
    words += " The other options default to those of its last run." if callback else ""
    option = typer.Option(
        help=words,
        envvar=environment_name("journal"),
        show_envvar=False,
        is_eager=callback is not None,
        callback=checked,
        parser=lambda text: JournalPlace(str(text)),
        metavar="JOURNAL",
    )
    assert isinstance(option, OptionInfo)
    return option


def _without_password(context: typer.Context, place: JournalPlace) -> JournalPlace:
    """Return a journal's place that may be printed. Raises `InvalidInput` for a password on the command line."""
    if not place.shows_password:
        return place
    variable = environment_name("journal")
    if source_of(context, "journal") == variable:
        return JournalPlace(variable)
    why = f"has a password: put it into an environment variable such as {variable}, and give that name"
    raise InvalidInput("journal", "***", why)


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON: one object per line.")]
DEFAULT_JOURNAL = JournalPlace("fleet.db")
JournalOption = Annotated[JournalPlace, journal_option()]
ApiOption = Annotated[
    str,
    setting_option(
        "api",
        "NAME",
        "The API generation of the server. A customer in the journal keeps the one that it has there.",
    ),
]
ReportOption = Annotated[
    Path | None,
    setting_option(
        "report", "FILE", "HTML file to write at the end: outcomes, reasons, and charts of the run."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ConnectionSettings):
    """The settings of a run: from the command line, the environment or a manifest's `[defaults]`."""

    out: Annotated[
        Path, setting_option("out", "FOLDER", "Folder for EXTERNAL_ID/SHEET.csv and report.json.")
    ] = Path("out")
    journal: JournalOption = DEFAULT_JOURNAL
    report: ReportOption = None
    root: Annotated[
        Path | None,
        setting_option(
            "root", "FOLDER", "Folder that all input files must lie below, after symbolic links are resolved."
        ),
    ] = None
    api: ApiOption = generations.DEFAULT
    decide: Annotated[
        DecideChoice,
        setting_option(
            "decide",
            "park|approve-safe|approve|reject",
            "What to do when an import needs a decision: park (leave it to a person), approve-safe (approve unless "
            "rows are destroyed), approve, or reject.",
        ),
    ] = "park"
    answers: Annotated[
        Path | None,
        setting_option(
            "answers",
            "FILE",
            "TOML file with rules that answer questions of runs (--api migrations): [[answer]] tables with question, "
            "and choose or text.",
        ),
    ] = None
    cancel_blocked_after: Annotated[
        Duration | None,
        duration_option(
            "Cancel a run that waits for a person after this time, to free its run slot (--api migrations): 30m.",
            environment_name("cancel_blocked_after"),
        ),
    ] = None
    filter: Annotated[
        RowFilter,
        setting_option("filter", "valid|all", "Rows to download: valid leaves out rows with a bad cell."),
    ] = "valid"
    retries: Annotated[
        int,
        setting_option(
            "retries", "N", "How often a failed import is started again with the same files.", least=0
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
            "What to do if files of a delivered or parked customer have changed: ignore (note it), refuse, or "
            "import-again, which may append rows to those of the first import.",
        ),
    ] = "ignore"
    when_held: Annotated[
        WhenHeld,
        setting_option(
            "when_held",
            "return|wait",
            "What to do with a customer that another process holds: return (leave it pending), or wait until it is "
            "free and continue it.",
        ),
    ] = "return"
    concurrency: Annotated[
        int, setting_option("concurrency", "N", "The most customers to migrate at the same time.", least=1)
    ] = 500
    max_duration: Annotated[
        Duration | None,
        duration_option(
            "Stop like Ctrl-C after this time: 90s, 45m, 1h30m.", environment_name("max_duration")
        ),
    ] = None
    stop_after_failures: Annotated[
        int | None,
        setting_option(
            "stop_after_failures", "N", "Stop like Ctrl-C when this many customers have failed.", least=1
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
            cancel_blocked_after=None
            if self.cancel_blocked_after is None
            else self.cancel_blocked_after.seconds,
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
        return {field.name: written(value) for field, value in values if value != field.default}


_READERS: Mapping[str, Callable[[str], object]] = {
    "out": Path,
    "journal": JournalPlace,
    "report": Path,
    "root": Path,
    "answers": Path,
    "cancel_blocked_after": parse_duration,
    "rate": parse_rate,
    "limits": Limits.parse,
    "retries": int,
    "deliver_rejected": lambda text: text == str(True),
    "concurrency": int,
    "max_duration": parse_duration,
    "stop_after_failures": int,
    "speed": float,
}


def read_settings(texts: Mapping[str, str]) -> Settings:
    """Parse the settings that `Settings.given` returns. Raises `ValueError` for other text."""
    values = {name: _READERS.get(name, str)(text) for name, text in texts.items()}
    return replace(
        Settings(), **cast("dict[str, Never]", values)
    )  # each reader returns the type of its field


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """What a command prints while it works."""

    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print events as JSON, one per line, on stdout; messages go to stderr."),
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only customers that are not delivered.")
    ] = False
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Print each step of each customer; with --json also each request."
        ),
    ] = False


def about_journal(journal: JournalPlace, command: str, *words: str) -> str:
    """Return the command line of a command that works on a journal, ready to be copied."""
    option = () if journal == DEFAULT_JOURNAL else ("--journal", str(journal))
    return shlex.join(["asyncmig", command, *words, *option])


SETTING_NAMES = [field.name for field in fields(Settings)]


def from_manifest(context: typer.Context, manifest: Path) -> Path:
    """Use the `[defaults]` of a manifest for options that neither the command line nor the environment sets.

    Raises `InvalidManifest` for unknown settings.
    """
    if not context.resilient_parsing:
        context.default_map = _settings_of(manifest)
    return manifest


def _settings_of(manifest: Path) -> dict[str, str]:
    defaults = {name.replace("-", "_"): value for name, value in read_defaults(manifest).items()}
    faults = tuple(_faults(defaults))
    if faults:
        raise InvalidManifest(str(manifest), faults)
    return {
        name: path_from(manifest.parent, name, str(value)) if name in PATHS else str(value)
        for name, value in defaults.items()
    }


def _faults(defaults: dict[str, object]) -> Iterator[ManifestFault]:
    for name, value in defaults.items():
        if name not in SETTING_NAMES:
            yield ManifestFault(
                line=None,
                field=f"defaults.{name}",
                reason=f"is not a setting; there are {', '.join(SETTING_NAMES)}",
            )
        elif not isinstance(value, str | int | float):
            reason = f"must be a string, a number, true or false: {value!r}"
            yield ManifestFault(line=None, field=f"defaults.{name}", reason=reason)


ManifestArgument = Annotated[
    Path,
    typer.Argument(
        metavar="MANIFEST",
        help="CSV with the columns external_id, name, source, templates, files; or TOML with [[company]].",
        is_eager=True,  # its [defaults] are the defaults of the other options
        callback=from_manifest,
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

    def at(self, base_url: str) -> "Options":
        """Return the same, for another server."""
        return replace(self, base_url=base_url)

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
        texts = {name: written(getattr(chosen, name)) for name in sorted(explicit)} | dict(chosen.given())
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


def source_of(context: typer.Context, name: str) -> str:
    """Return the origin of a setting's value, for people."""
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
