"""Live connections to a customer's source system, and the secrets that open them."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import final

import msgspec

from asyncmig._core.arguments import checked_call, checked_text
from asyncmig._core.secrets import secrets_of
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig.errors import InvalidInput, NotFound
from asyncmig.migrations import routes
from asyncmig.migrations.answers import checked_secrets
from asyncmig.migrations.state import once_known, state_of
from asyncmig.migrations.wire import Connection, ConnectionBody, ConnectionReply, Deleted

__all__ = ["WORKBOOK", "SourceConnection"]

WORKBOOK = "workbook"
"""As a `profile_id`: the connection of the workbook, without a profile."""


@final
class SourceConnection:
    """The live connections of one migration, as `migration.connection`."""

    __slots__ = ("_context", "_ids")

    def __init__(self, context: SessionContext, migration_id: str) -> None:
        self._context, self._ids = context, {"id": migration_id}

    @checked_call
    async def save(
        self,
        source_key: str,
        *,
        profile_id: str | None = None,
        config: Mapping[str, object] | None = None,
        selected_streams: Sequence[str] | None = None,
        stream_state: Mapping[str, object] | None = None,
        credentials: Mapping[str, object] | None = None,
    ) -> Connection:
        """Create or update the live connection to the customer's source system.

        - `source_key`: in lower case, for example `salesforce`.
        - `profile_id`: None is the default profile, `WORKBOOK` is the workbook.
        - `config`: settings that are no secrets. `credentials`: secrets; no repr, error, log or journal has them.

        Fields that are left out are kept or reset: servers differ.
        """
        unset = msgspec.UNSET
        secrets = None if credentials is None else checked_secrets("credentials", credentials)
        body = ConnectionBody(
            source_key=_source_key(source_key),
            profile_id=unset if profile_id is None else None if profile_id == WORKBOOK else profile_id,
            config=unset if config is None else config,
            selected_streams=unset if selected_streams is None else tuple(selected_streams),
            stream_state=unset if stream_state is None else stream_state,
            credentials=unset if secrets is None else secrets,
        )
        call = Call(
            endpoint=routes.SAVE_CONNECTION,
            ids=self._ids,
            body=msgspec.json.encode(body),
            secrets=tuple(secrets_of(secrets)) if secrets else (),
        )
        shared = state_of(self._context, self._ids["id"])
        save = partial(self._context.caller.call, call, ConnectionReply)
        return (await once_known(save, until=shared.known_by)).source_connection

    @checked_call
    async def read(
        self, source_key: str | None = None, *, profile_id: str | None = None
    ) -> Connection | None:
        """Return the connection, or None if there is none; one request."""
        call = Call(
            endpoint=routes.READ_CONNECTION, ids=self._ids, query=_connection_query(source_key, profile_id)
        )
        try:
            return (await self._context.caller.call(call, ConnectionReply)).source_connection
        except NotFound:
            return None

    @checked_call
    async def delete(self, source_key: str | None = None, *, profile_id: str | None = None) -> bool:
        """Delete the connection with its secrets, and return whether there was one."""
        query = _connection_query(source_key, profile_id)
        call = Call(endpoint=routes.DELETE_CONNECTION, ids=self._ids, query=query)
        try:
            return (await self._context.caller.call(call, Deleted)).deleted
        except NotFound as error:
            return error.after_doubt  # the first attempt may have deleted it


def _source_key(source_key: str) -> str:
    if checked_text("source_key", source_key) != source_key.lower():
        raise InvalidInput("source_key", source_key, "must be in lower case")
    return source_key


def _connection_query(source_key: str | None, profile_id: str | None) -> dict[str, str]:
    query = {} if source_key is None else {"source_key": _source_key(source_key)}
    return query if profile_id is None else query | {"profile_id": checked_text("profile_id", profile_id)}
