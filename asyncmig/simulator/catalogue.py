"""The account's sources and templates, as listings show them."""

from collections.abc import Iterable, Mapping

from asyncmig.simulator.messages import Json
from asyncmig.simulator.tables import Schema

__all__ = ["describe_sources", "describe_templates"]


def describe_sources(sources: Mapping[str, str]) -> list[Json]:
    return [{"id": each, "name": name, "logo_url": None} for each, name in sources.items()]


def describe_templates(schemas: Iterable[Schema]) -> list[Json]:
    return [_describe(schema) for schema in schemas]


def _describe(schema: Schema) -> Json:
    return {
        "id": schema.id,
        "name": schema.name,
        "description": None,
        "columns": [
            {
                "name": column.name,
                "description": "",
                "required": column.required,
                "unique": column.unique,
                "desiredRule": "strict" if column.pattern else "link" if column.link else "none",
                "strictRule": column.pattern,
                "linkRule": [{"templateId": column.link[0], "columnName": column.link[1]}]
                if column.link
                else None,
            }
            for column in schema.columns
        ],
    }
