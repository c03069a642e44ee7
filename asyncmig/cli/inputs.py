"""`--select`: which customers of a manifest a command is about."""

import asyncio
import difflib
from collections.abc import (
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console

from asyncmig.cli.output import clean, say
from asyncmig.cli.settings import PATHS, Options
from asyncmig.customers.file_names import check_utf8
from asyncmig.customers.status import CustomerRecord
from asyncmig.errors import (
    InvalidInput,
    JournalError,
    JournalUnavailable,
)
from asyncmig.jobs.manifest import Manifest, read_manifest
from asyncmig.jobs.outputs import OwnFiles
from asyncmig.jobs.status import OUTCOMES, read_records, status_of
from asyncmig.journal import Journal

__all__ = [
    "UNFINISHED",
    "check_folders",
    "check_names",
    "known_customers",
    "only",
    "read_inputs",
    "say_excluded",
    "say_removed",
    "select",
    "statuses_of",
]


UNFINISHED: Final = "status:failed,parked,unknown,pending"
_STATUS = "status:"
_MOST_NAMED = 5


def select(text: str, manifest: Manifest, statuses: Mapping[str, str]) -> frozenset[str]:
    """Return the customers that `status:failed,parked` or a list of external ids stands for.

    A customer without a status is pending. Raises `InvalidInput` for a status or an id that
    does not exist, and for a selection of nothing.
    """
    words = [word.strip() for word in text.removeprefix(_STATUS).split(",") if word.strip()]
    if not words:
        raise InvalidInput("select", text, "selects nothing: write status:failed,parked or external ids")
    known = [customer.external_id for customer in manifest.customers]
    if not text.startswith(_STATUS):
        _check(words, known, f"is not in {manifest.path}")
        return frozenset(words)
    _check(words, OUTCOMES, f"is no status; there are {', '.join(OUTCOMES)}")
    return frozenset(each for each in known if statuses.get(each, "pending") in words)


def only(manifest: Manifest, selected: frozenset[str] | None) -> Manifest:
    """Return a manifest with the selected customers alone; None selects all of them."""
    if selected is None:
        return manifest
    chosen = tuple(customer for customer in manifest.customers if customer.external_id in selected)
    return replace(manifest, customers=chosen)


def statuses_of(records: Mapping[str, CustomerRecord]) -> dict[str, str]:
    """Return the status of each customer that a journal knows."""
    return {external_id: status_of(record).outcome for external_id, record in records.items()}


def _check(words: Sequence[str], known: Sequence[str], reason: str) -> None:
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1)
            raise InvalidInput("select", word, f"{reason}; is {near[0]!r} meant?" if near else reason)


async def known_customers(path: Path) -> dict[str, CustomerRecord]:
    """Return the customers of a journal as far as it can be read. Raises `JournalUnavailable`."""
    try:
        async with Journal(path, read_only=True) as journal:
            return await read_records(journal, str(path))
    except JournalUnavailable:
        raise
    except JournalError:
        return {}  # there is none yet, or opening it for writing will report why it cannot be read


def _begun(records: Iterable[CustomerRecord]) -> frozenset[str]:
    """Return the customers whose import has begun, by external id."""
    return frozenset(record.external_id for record in records if record.has_started)


def say_removed(manifest: Manifest, records: Mapping[str, CustomerRecord], words: Console) -> None:
    """Say which customers were begun and stand in the manifest no more."""
    removed = sorted(records.keys() - {customer.external_id for customer in manifest.customers})
    if removed:
        shown = ", ".join(removed[:5]) + (", ..." if len(removed) > 5 else "")
        say(
            words,
            f"note: in the journal and not in the manifest: {len(removed)} ({shown}). Nothing is done for them; "
            "back in the manifest they go on where they were.",
            "dim",
        )


def check_names(options: Options) -> None:
    """Refuse paths whose names are not UTF-8: reports, and what is remembered of the run, hold them as text."""
    named = {name: getattr(options, name) for name in ("manifest", *sorted(PATHS))}
    for name, path in {**named, "folder": Path.cwd()}.items():
        if path is not None:
            check_utf8(name, path)


def check_folders(out: Path, manifest: Manifest) -> None:
    """Refuse ids that differ only in case where the file system does not tell them apart."""
    if not (out / "REPORT.JSON").exists():
        return
    seen: dict[str, str] = {}
    for customer in manifest.customers:
        other = seen.setdefault(customer.external_id.casefold(), customer.external_id)
        if other != customer.external_id:
            raise InvalidInput(
                "external_id", customer.external_id, f"and {other!r} would be one folder on this file system"
            )


def read_inputs(options: Options, words: Console) -> Manifest:
    """Read and check the manifest of a run; print notes about what it ignores. Raises `InvalidManifest`."""
    known = asyncio.run(known_customers(options.journal))
    outputs = options.outputs(known.values())
    manifest = read_manifest(
        options.manifest, begun=_begun(known.values()), outputs=outputs, root=options.root
    )
    OwnFiles(manifest.path, outputs, [customer.external_id for customer in manifest.customers]).check()
    say_excluded(manifest, words)
    if manifest.ignored:
        say(
            words,
            f"note: columns that mean nothing here: {clean(', '.join(manifest.ignored))}",
            "dim",
        )
    return manifest


def say_excluded(manifest: Manifest, words: Console) -> None:
    """Say which files a glob matches and that are no inputs."""
    if manifest.excluded:
        named = [f"{clean(str(path))} ({clean(what)})" for path, what in manifest.excluded.items()]
        more = f" and {len(named) - _MOST_NAMED:,} more" if len(named) > _MOST_NAMED else ""
        say(
            words,
            f"note: a glob matches files that are no inputs, and leaves them out: "
            f"{', '.join(named[:_MOST_NAMED])}{more}",
            "dim",
        )
