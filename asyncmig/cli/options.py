"""What `asyncmig run` was asked for, and the command line that asks for the same again."""

import shlex
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import typer

from asyncmig.cli.setting_origin import from_manifest
from asyncmig.cli.settings import DecideChoice, LastRun, Settings, read_settings, written
from asyncmig.companies.workflow.record import Record
from asyncmig.errors import InvalidInput
from asyncmig.jobs.outputs import Outputs

__all__ = ["ManifestArgument", "Options"]

ManifestArgument = Annotated[
    Path,
    typer.Argument(
        help="CSV with the columns external_id, name, source, templates, files; or TOML with [[company]].",
        is_eager=True,  # its [defaults] are the defaults of the others
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

    @classmethod
    def of_last(cls, last: LastRun) -> "Options":
        """Return what the last run of a journal was asked for. Raises `InvalidInput` for unreadable settings."""
        try:
            return cls.of(last.path(), read_settings(last.defaults()))
        except (TypeError, ValueError) as error:
            reason = f"the settings of the last run beside the journal cannot be read ({error})"
            raise InvalidInput("journal", last.settings.get("journal", ""), reason) from error

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
        """Return the line that goes on from here, with another decision if one is given; it holds no key.

        `queue`, `select`: as the options of that name. `explicit`: settings to write even with their default values.
        """
        words = ["asyncmig", "run", str(self.manifest)]
        chosen = replace(self, decide=decide or self.decide)
        texts = {name: written(getattr(chosen, name)) for name in sorted(explicit)} | dict(chosen.given())
        more = {"queue": queue, "select": select}
        for name, text in {**texts, **{name: text for name, text in more.items() if text}}.items():
            if text != str(False):
                words += [f"--{name.replace('_', '-')}", *([] if text == str(True) else [text])]
        return shlex.join(words)

    def outputs(self, records: Iterable[Record]) -> Outputs:
        """Return where the run writes, and what was delivered to the customers of `records`."""
        known = list(records)
        sheets = [Path(file.path) for record in known for file in getattr(record.outcome, "files", ())]
        return Outputs(
            out=self.out,
            journal=self.journal,
            report=self.report,
            customers=frozenset(record.external_id for record in known),
            delivered=tuple(sheets),
        )

    def about_journal(self, command: str, *words: str) -> str:
        """Return the line of another command about the same journal."""
        journal = () if self.journal == Settings().journal else ("--journal", str(self.journal))
        return shlex.join(["asyncmig", command, *words, *journal])
