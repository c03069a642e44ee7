"""Finds the template that a file's headers resemble most, and the template's column for each header."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache

from asyncmig._core.invisible import BYTE_ORDER_MARK, invisible_in_name, named_characters
from asyncmig.customers.catalog import TemplateRules
from asyncmig.preflight.findings import Finding, HeaderMatch, Sample, number_of

__all__ = ["Fit", "find_fit", "header_findings"]

_SIMILAR = 0.8
"""The similarity, from 0 to 1, from which a name counts as similar."""
_MOST_HEADERS = 2000
_LONGEST_HEADER = 200
_MOST_COMPARED = 200
"""The most headers, and the most columns, that are compared for similar names: each header with each column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The matches between the headers of a file and the columns of a template."""

    template: TemplateRules | None = None
    headers: tuple[HeaderMatch, ...] = ()
    places: Mapping[str, int] = field(default_factory=dict[str, int])
    """The position of each column in a row, by the name of the column."""
    named: bool = False
    """Whether the file's name is the template's name."""
    warnings: tuple[Finding, ...] = ()

    @property
    def found(self) -> float:
        """The number of columns with a header. A header with a similar name counts half."""
        return len(self.places) + sum(match.near is not None for match in self.headers) / 2

    @property
    def is_close(self) -> bool:
        """Whether half of the columns or of the headers match. If the file's name is the template's, one match is
        enough."""
        columns = len(self.template.columns) if self.template else 0
        return self.found > 0 and (self.named or self.found * 2 >= min(columns, len(self.headers)))


def find_fit(header: Sequence[str], templates: Sequence[TemplateRules], stem: str) -> Fit:
    """Return the matches with the template whose columns match the header best, if one is close.

    Only the first 2,000 cells are compared. `stem`: the file's name without its suffix. A template with that name
    takes precedence.
    """
    names = [text[:_LONGEST_HEADER] for text in header[:_MOST_HEADERS]]
    nothing = Fit(headers=tuple(HeaderMatch(header=name) for name in names))
    if not templates:
        return nothing
    fits = [fit for template in templates if (fit := _compare(names, template, stem)).is_close]
    if fits:
        return max(fits, key=lambda fit: (fit.named, fit.found))
    text = "no template has columns with these names; the server maps headers itself, and may still map them"
    return Fit(headers=nothing.headers, warnings=(Finding(kind="no_template", text=text),))


def _compare(names: Sequence[str], template: TemplateRules, stem: str) -> Fit:
    known = {_fold(column.name): column.name for column in reversed(template.columns)}
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        if (column := known.get(_fold(name))) is not None:
            places.setdefault(column, place)
    same = {place: column for column, place in places.items()}
    near = _near(
        [place for place in range(len(names)) if place not in same],
        names,
        [column.name for column in template.columns if column.name not in places],
    )
    matches = tuple(
        HeaderMatch(header=name, column=same.get(place), near=near.get(place))
        for place, name in enumerate(names)
    )
    warnings = _missing(template, places, matches)
    named = bool(template.name) and _fold(template.name) == _fold(stem)
    return Fit(template=template, places=places, headers=matches, named=named, warnings=warnings)


@lru_cache(maxsize=4096)
def _fold(name: str) -> str:
    """Return a name without case, accents, spaces and punctuation; unchanged if it has nothing else."""
    plain = "".join(each for each in unicodedata.normalize("NFKD", name.casefold()) if each.isalnum())
    return plain or name.strip()


@lru_cache(maxsize=4096)
def _words(name: str) -> frozenset[str]:
    """Return the words of a name. A hyphen does not separate words: `E-mail Address` has the words email and
    address."""
    return frozenset(filter(None, map(_fold, re.split(r"[\s_./]+", name))))


def _near(places: Sequence[int], names: Sequence[str], columns: Sequence[str]) -> dict[int, str]:
    """Return columns with similar names, by the position of the header. Each column is used at most once."""
    free = [place for place in places if names[place].strip()][:_MOST_COMPARED]
    found: dict[int, str] = {}
    for column in columns[:_MOST_COMPARED]:
        similarity = _similarities(column, [names[place] for place in free])
        best = max(range(len(free)), key=similarity.__getitem__, default=None)
        if best is not None and similarity[best] >= _SIMILAR:
            found[free.pop(best)] = column
    return found


def _similarities(column: str, names: Sequence[str]) -> list[float]:
    """Return the similarity of each name to a column, from 0 to 1.

    If one of the two names contains all words of the other, the similarity is `_SIMILAR`.
    """
    words, matcher = _words(column), SequenceMatcher(None, "", _fold(column), autojunk=False)
    similarity: list[float] = []
    for name in names:
        others = _words(name)
        if words and others and (words <= others or others <= words):
            similarity.append(_SIMILAR)
            continue
        matcher.set_seq1(_fold(name))
        is_different = matcher.real_quick_ratio() < _SIMILAR or matcher.quick_ratio() < _SIMILAR
        similarity.append(0.0 if is_different else matcher.ratio())
    return similarity


def _missing(
    template: TemplateRules, places: Mapping[str, int], matches: Sequence[HeaderMatch]
) -> tuple[Finding, ...]:
    """Return a warning for each required column without a header."""
    near = {match.near: match.header for match in matches}
    return tuple(
        Finding(
            kind="column_missing",
            column=column.name,
            text=f"{column.name!r} is required by {template.name}, and no header has that name"
            + (f"; {near[column.name]!r} may be it" if column.name in near else ""),
        )
        for column in template.columns
        if column.required and column.name not in places
    )


def header_findings(header: Sequence[str]) -> list[Finding]:
    """Return the faults of headers that do not depend on a template."""
    findings: list[Finding] = []
    empty = [f"{place:,}" for place, text in enumerate(header, 1) if not text.strip()]
    if empty:
        text = f"{number_of(len(empty), 'column')} of {len(header):,} without a header: {_first_names(empty)}"
        findings.append(Finding(kind="header_empty", text=text, count=len(empty)))
    counts = Counter(text.strip()[:_LONGEST_HEADER] for text in header if text.strip())
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        text = f"{number_of(len(twice), 'header')} more than once: {_first_names(list(map(repr, twice)))}"
        findings.append(Finding(kind="header_twice", text=text, count=len(twice)))
    if header[0].startswith(BYTE_ORDER_MARK):
        text = f"begins with a second byte order mark, which is part of the first header: {header[0]!a}"
        findings.append(Finding(kind="mark", text=text, samples=(Sample(line=1),)))
    invisible = {
        name: found for name in header if (found := invisible_in_name(name.removeprefix(BYTE_ORDER_MARK)))
    }
    if invisible:
        characters = named_characters({each for found in invisible.values() for each in found})
        names = _first_names([ascii(name[:_LONGEST_HEADER]) for name in invisible])
        count = number_of(len(invisible), "header")
        text = f"{count} with invisible or look-alike characters ({characters}): {names}"
        findings.append(Finding(kind="header_invisible", text=text, count=len(invisible)))
    if len(header) > _MOST_HEADERS:
        text = f"{len(header):,} columns; only the first {_MOST_HEADERS:,} are checked"
        findings.append(Finding(kind="header_many", text=text, count=len(header)))
    return findings


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
