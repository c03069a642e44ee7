"""`asyncmig check`: warn about the files of a manifest; nothing is created."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from asyncmig import generations, preflight
from asyncmig._core.decode import Unreadable, decode
from asyncmig.cli.connection import BaseUrlOption
from asyncmig.cli.exit_codes import DELIVERED, KEY_REFUSED, RESUMABLE
from asyncmig.cli.inputs import say_excluded
from asyncmig.cli.options import ApiOption, JsonOption
from asyncmig.cli.output import SCHEMA, clean, counted, data_console, listed, print_line, say, words_console
from asyncmig.cli.settings import ManifestArgument, places_of
from asyncmig.customers.catalog import TemplateRules, named
from asyncmig.errors import AuthError, InvalidInput, NoAnswer, ServerError, UnexpectedReply
from asyncmig.jobs.manifest import Customer, InvalidManifest, Manifest, ManifestFault, read_manifest
from asyncmig.preflight import CheckedFile, Finding
from asyncmig.session import Session, context_of

__all__ = ["check"]

_WITHOUT_TEMPLATES = "only the files themselves are checked, not their headers and cells"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """The options of `asyncmig check`."""

    templates: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON file with the server's list of templates (GET /templates), instead of a request.",
        ),
    ] = None
    head: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="How many rows of each file to read; the default is all."),
    ] = None
    api: ApiOption = generations.DEFAULT
    base_url: BaseUrlOption = None


class _TemplateFile(msgspec.Struct, frozen=True):
    templates: tuple[TemplateRules, ...]


def check(
    context: typer.Context, manifest: ManifestArgument, options: CheckOptions, as_json: JsonOption = False
) -> None:
    """Check the files of a manifest and print warnings.

    Nothing is created. Warnings do not change the exit code: the server decides which files it accepts. If
    VERN_API_KEY is set, one request reads the templates.
    """
    words = words_console()
    outputs, root = places_of(context)
    customers = read_manifest(manifest, outputs=outputs, root=root, api=options.api)
    say_excluded(customers, words)
    raise typer.Exit(asyncio.run(_check(customers, options, words, as_json=as_json)))


async def _check(manifest: Manifest, options: CheckOptions, words: Console, *, as_json: bool) -> int:
    """Check the files of every customer, print warnings and notes about each file, and return the exit code.

    Raises `InvalidInput` for unknown names of templates.
    """
    extras = {"charset_normalizer": "encodings are not guessed", "re2": "strict rules are not checked"}
    if missing := [effect for module, effect in extras.items() if find_spec(module) is None]:
        say(words, f"note: {' and '.join(missing)}. For that, pip install 'asyncmig[check]'", "dim")
    try:
        templates = await _templates(options, words)
    except (AuthError, NoAnswer, ServerError, UnexpectedReply) as error:
        say(words, f"Error: the templates could not be read: {clean(str(error))}", "red")
        return KEY_REFUSED if isinstance(error, AuthError) else RESUMABLE
    data, files, warnings = data_console(), 0, 0
    for customer, wanted in zip(manifest.customers, _chosen(manifest, templates), strict=True):
        checked = await preflight.check(customer.files, wanted, head=options.head)
        files += len(checked.files)
        warnings += checked.warnings
        if as_json:
            print_line({"schema": SCHEMA, "external_id": customer.external_id, "files": checked.files})
        else:
            _print(data, customer, checked.files)
    verdict = "no warnings."
    if warnings:
        verdict = f"{counted(warnings, 'warning')}. The server decides, and may accept the files anyway."
    say(words, f"{counted(files, 'file')} of {counted(len(manifest.customers), 'customer')}: {verdict}")
    return DELIVERED


async def _templates(options: CheckOptions, words: Console) -> Sequence[TemplateRules]:
    """Return the templates of the file or of the account; if there are none to be had, print a note."""
    if options.templates is not None:
        return _from_file(options.templates)
    if not os.environ.get("VERN_API_KEY"):
        say(words, f"note: without VERN_API_KEY or --templates FILE, {_WITHOUT_TEMPLATES}", "dim")
        return ()
    async with Session(base_url=options.base_url) as session:
        templates = await generations.find(options.api).template_rules(context_of(session))
        if templates is None:
            say(words, f"note: this server does not list templates: {_WITHOUT_TEMPLATES}", "dim")
        return templates or ()


def _from_file(path: Path) -> tuple[TemplateRules, ...]:
    """Read templates from a JSON file: a list, or an object with the list as `templates`."""
    content = path.read_bytes()
    if content.lstrip().startswith(b"["):
        content = b'{"templates":' + content + b"}"
    try:
        return decode(content, _TemplateFile).templates
    except Unreadable as error:
        raise InvalidInput("templates", str(path), str(error)) from error


def _chosen(manifest: Manifest, templates: Sequence[TemplateRules]) -> list[list[TemplateRules]]:
    """Return the templates of each customer; raise `InvalidManifest` with every unknown name."""
    chosen: list[list[TemplateRules]] = []
    faults: list[ManifestFault] = []
    for customer in manifest.customers:
        wanted: set[str] = set()
        for name in customer.templates if templates else ():
            try:
                wanted.add(named("templates", name, templates).id)
            except InvalidInput as error:
                faults.append(
                    ManifestFault(line=customer.line, field="templates", reason=f"{name!r} {error.reason}")
                )
        chosen.append([each for each in templates if not wanted or each.id in wanted])
    if faults:
        raise InvalidManifest(str(manifest.path), tuple(faults))
    return chosen


def _print(data: Console, customer: Customer, files: Sequence[CheckedFile]) -> None:
    for file in files:
        say(data, f"{customer.external_id}  {clean(file.path)}: {_facts(file)}", "bold")
        for warning in file.warnings:
            say(data, f"  warning: {clean(warning.text)}{_places(warning)}", "yellow")
        for note in (*_unmatched(file), *file.notes):
            say(data, f"  note: {clean(note)}", "dim")


def _facts(file: CheckedFile) -> str:
    facts = [] if file.rows is None else [counted(file.rows, "row") + ("" if file.complete else " read")]
    facts += [counted(len(file.headers), "column")] if file.headers else []
    facts += [file.encoding.replace("utf-8-sig", "utf-8 with a byte order mark")] if file.encoding else []
    if file.template is not None:
        same = sum(match.column is not None for match in file.headers)
        facts.append(f"most like {clean(file.template)} ({counted(same, 'column')} of the same name)")
    return ", ".join(facts) or counted(file.size, "byte")


def _unmatched(file: CheckedFile) -> list[str]:
    """Return a note about headers that match no column of the most similar template."""
    if file.template is None:
        return []
    left = [
        repr(match.header) + (f" (near {match.near!r})" if match.near else "")
        for match in file.headers
        if match.column is None and match.header.strip()
    ]
    return [f"{file.template} has no column of these names: {listed(left, 10)}"] if left else []


def _places(finding: Finding) -> str:
    """Return the lines of the first occurrences, with the values if there are any."""
    if not finding.samples or f"line {finding.samples[0].line:,}" in finding.text:
        return ""
    if finding.samples[0].value:
        seen = [f"line {each.line:,}: {each.value!r}" for each in finding.samples]
        return f" ({'; '.join(seen)}{'; ...' if finding.count > len(seen) else ''})"
    lines = ", ".join(f"{each.line:,}" for each in finding.samples)
    more = finding.count > len(finding.samples)
    return f" (line{'s' * (finding.count > 1)} {lines}{', ...' * more})"
