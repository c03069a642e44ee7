"""The rules of a template's columns, as every generation of the API has them."""

from msgspec import Struct, field

__all__ = ["CatalogueItem", "ColumnSpec", "Link", "TemplateRules"]


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
