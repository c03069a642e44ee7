"""Knowledge: texts that the agent reads before each run, per source and per migration."""

from collections.abc import Callable, Mapping
from typing import final

import msgspec

from asyncmig._core.endpoint import Endpoint
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig.errors import ApiError, InvalidInput
from asyncmig.migrations.wire import KnowledgeBody, KnowledgeText

__all__ = ["Knowledge"]

_LOST_GUARD = 412
_MERGES = 5


@final
class Knowledge:
    """The knowledge of one source or one migration. The agent rewrites it too, so change it with `update`."""

    __slots__ = ("_context", "_ids", "_read", "_write")

    def __init__(
        self, context: SessionContext, read: Endpoint, write: Endpoint, ids: Mapping[str, str]
    ) -> None:
        self._context, self._read, self._write, self._ids = context, read, write, ids

    async def read(self) -> KnowledgeText:
        """Return the text, and when it was changed; one request."""
        return await self._context.caller.call(Call(endpoint=self._read, ids=self._ids), KnowledgeText)

    async def write(self, text: str, *, if_unmodified_since: str | None) -> KnowledgeText:
        """Replace the whole text, unless it was changed since it was read. An empty text clears it.

        `if_unmodified_since`: the `updated_at` of the text that was read; None if there was none. Raises `ApiError`
        with status 412 if it was changed meanwhile; `Conflict` while a run uses it, and for an ambiguous source.
        """
        guard = msgspec.UNSET if if_unmodified_since is None else if_unmodified_since
        body = msgspec.json.encode(KnowledgeBody(text=text, if_unmodified_since=guard))
        call = Call(endpoint=self._write, ids=self._ids, body=body)
        try:
            return await self._context.caller.call(call, KnowledgeText)
        except ApiError as error:
            if error.status != _LOST_GUARD or not error.after_doubt:
                raise
            now = await self.read()  # the first attempt may have been processed, and changed the time
            if (now.text or "") != text:
                raise
            return now

    async def update(self, merge: Callable[[str], str]) -> KnowledgeText:
        """Read the text, pass it to `merge`, and write the result; again if it was changed meanwhile.

        ```python
        await migration.knowledge.update(lambda text: f"{text}\\nDates are day first.".strip())
        ```

        Nothing is written if `merge` changes nothing. Raises `ApiError` with status 412 after five lost races.
        """
        for attempt in range(1, _MERGES + 1):
            known = await self.read()
            text = merge(known.text or "")
            if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller's
                raise InvalidInput("merge", text, "must return a str")
            if text == (known.text or ""):
                return known
            try:
                return await self.write(text, if_unmodified_since=known.updated_at)
            except ApiError as error:
                if error.status != _LOST_GUARD or attempt == _MERGES:
                    raise
        raise AssertionError
