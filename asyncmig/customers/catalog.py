"""The catalogue of an account: sources, templates with their column rules, and how to find one by its name or id."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import ClassVar, Protocol, TypeVar, cast
from urllib.parse import urlsplit

from msgspec import Struct, field

from asyncmig._core.arguments import checked_text
from asyncmig.errors import InvalidInput

__all__ = [
    "CatalogueItem",
    "ColumnSpec",
    "Link",
    "TemplateRules",
    "called",
    "checked_id",
    "has_ids",
    "named",
    "source_id",
]


class CatalogueItem(Struct, frozen=True, kw_only=True):
    """A source or a template of the account, known by its id."""

    id: str
    name: str = ""


class Link(Struct, frozen=True, kw_only=True):
    """A column that a link rule points to."""

    template_id: str | None = field(name="templateId", default=None)
    """The id or slug of a template. For several templates, the text of a JSON array of them."""
    column_name: str | None = field(name="columnName", default=None)
    discriminator: str | None = None
    """The column that says which of several templates a cell points to."""
    value_map: object = field(name="valueMap", default=None)
    value_path: str | None = field(name="valuePath", default=None)
    key_path: str | None = field(name="keyPath", default=None)
    key_map: object = field(name="keyMap", default=None)


class ColumnSpec(Struct, frozen=True, kw_only=True):
    """One column of a template and the rule that its cells must obey."""

    name: str
    description: str | None = None
    required: bool = False
    unique: bool = False
    rule: str | None = field(name="desiredRule", default=None)
    """`none`, `ai`, `strict` or `link`; others may come."""
    pattern: str | None = field(name="strictRule", default=None)
    """A regular expression, where the rule is strict."""
    links: tuple[Link, ...] = field(name="linkRule", default=())
    schema: object = None
    """A JSON Schema of the cell's value, which is JSON text. It has precedence over `pattern`."""


class TemplateRules(CatalogueItem, frozen=True, kw_only=True):
    """A target schema: its columns and their rules."""

    columns: tuple[ColumnSpec, ...] = ()
    enforces_all: ClassVar[bool] = False
    """Whether the server enforces every rule that a column has. Otherwise `rule` names the one that it enforces."""


def source_id(field: str, source: object) -> str:
    """Return the id of a source that is given by its id or as a `Source`. Raises `InvalidInput`."""
    return checked_text(field, source.id if isinstance(source, CatalogueItem) else source)


def has_ids(listed: object) -> bool | None:
    """Return whether the sources in a JSON response have ids; None if there are none, or only some have."""
    sources = cast("Mapping[str, object]", listed).get("sources") if isinstance(listed, Mapping) else None
    if not isinstance(sources, list) or not sources:
        return None
    found = {isinstance(each, Mapping) and "id" in each for each in cast("list[object]", sources)}
    return found.pop() if len(found) == 1 else None


class _Listed(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


_FEW = 20
"""How many names an error lists in full."""
_Named = TypeVar("_Named", bound=_Listed)


def named(field: str, wanted: str, among: Sequence[_Named]) -> _Named:
    """Return the one of `among` whose id or name is `wanted`.

    Raises `InvalidInput` naming `field` if there is none, or more than one of that name.
    """
    checked_text(field, wanted)
    found = [each for each in among if each.id == wanted] or called(wanted, among)
    if len(found) == 1:
        return found[0]
    if found:
        ids = [each.id for each in found]
        raise InvalidInput(field, wanted, f"is the name of {len(ids)} of them: use an id of {ids}")
    raise InvalidInput(
        field, wanted, f"is not known; {_offer(wanted, sorted({each.name for each in among}))}"
    )


def _offer(wanted: str, names: Sequence[str]) -> str:
    """Return the names that `wanted` may stand for: all of a few, the most similar ones of many."""
    if len(names) <= _FEW:
        return f"there are {list(names)}"
    folded = {name.casefold(): name for name in names}
    near = [folded[each] for each in get_close_matches(wanted.casefold(), folded, n=5)]
    return (
        f"there are {len(names)}, and the most similar are {near}"
        if near
        else f"none of {len(names)} is similar"
    )


def called(name: str, among: Sequence[_Named]) -> list[_Named]:
    """Return those of this name; if there are none, those whose name differs only in upper and lower case."""
    return [each for each in among if each.name == name] or [
        each for each in among if each.name.casefold() == name.casefold()
    ]


# Ids that people type or paste

_FORBIDDEN = frozenset("/\\?#%")
_DOTS = frozenset({".", ".."})
_LONGEST = 255


def checked_id(field: str, value: object, *segments: str) -> str:
    """Return the id in `value`, which may have spaces around it or be a URL of the dashboard.

    `segments`: the path segments of such a URL that may stand before the id. Raises `InvalidInput` naming `field` for
    a value that could change the route of a request. The error never contains a URL, because it may contain a token.
    """
    if not isinstance(value, str):
        raise InvalidInput(field, value, "must be a str")
    text = value.strip()
    if "://" in text:
        text = _from_url(field, text, segments)
    if not text:
        raise InvalidInput(field, value, "is empty")
    if len(text) > _LONGEST:
        raise InvalidInput(field, f"{text[:40]}...", f"is longer than {_LONGEST} characters")
    if text in _DOTS or " " in text or not text.isprintable() or _FORBIDDEN & set(text):
        reason = (
            "is not an id: it must not be . or .., nor have spaces, control characters or any of / \\ ? # %"
        )
        raise InvalidInput(field, text, reason)
    return text


def _from_url(field: str, url: str, before: Sequence[str]) -> str:
    """Return the segment after one of `before`, in the path or in a fragment that looks like a path."""
    try:
        parts = urlsplit(url)
    except ValueError:
        segments = []
    else:
        segments = [*parts.path.split("/"), *parts.fragment.split("/")]
    for name, following in pairwise(segments):
        if name in before and following:
            return following
    raise InvalidInput(field, "(a URL)", f"has no /{before[0]}/ID in its path: give the id alone")
