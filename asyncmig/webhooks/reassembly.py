"""Reassembles exports from batches, in bounded memory. Batches may arrive in any order and several times.

Batches are grouped by `batch.id` and ordered by `batch.index`. An export is complete when batches with `batch.total`
different indexes have arrived. Bodies are kept undecoded, so that the used memory is known.
"""

from collections.abc import Iterator
from typing import TypeVar, cast, final

import msgspec

from asyncmig._core.arguments import checked_call
from asyncmig.errors import InvalidInput, WebhookRefused
from asyncmig.webhooks.payload import Batch, Event, Origin, OtherEvent, SheetRows, decode

__all__ = ["Added", "Export", "Incomplete", "Reassembler"]

_OVERHEAD = 512
"""The bytes that a kept batch needs in addition to its body, rounded up: for ids, indexes and objects."""
T = TypeVar("T")


class Export(Origin, frozen=True, kw_only=True):
    """A complete export."""

    id: str
    """`batch.id`. Use it to import each export only once, because a repeat that arrives much later is not
    recognised."""
    message_ids: tuple[str, ...] = ()
    """The `svix-id` of each batch, in the order of the batches."""
    bodies: tuple[bytes, ...] = ()
    """The bytes of each batch, in order."""

    def __repr__(self) -> str:  # rows are a customer's data and do not belong in a log
        return f"<Export {self.id} of workbook {self.workbook_id}: {len(self.bodies)} batches>"

    def batches(self) -> Iterator[Batch]:
        """Decode the batches one by one, in order. For a large export, this needs less memory than `sheets`."""
        for message_id, body in zip(self.message_ids, self.bodies, strict=True):
            yield cast("Batch", decode(body, message_id=message_id))  # `Reassembler` accepts only batches

    def sheets(self) -> tuple[SheetRows, ...]:
        """Return every sheet with all its rows, both in the order in which they were sent.

        This decodes all batches. For a large export, use a thread: `await asyncio.to_thread(export.sheets)`.
        """
        parts: dict[str, list[SheetRows]] = {}
        for batch in self.batches():
            for sheet in batch.sheets:
                parts.setdefault(sheet.id or sheet.name, []).append(sheet)
        return tuple(_joined(sheets) for sheets in parts.values())


class Incomplete(msgspec.Struct, frozen=True, kw_only=True):
    """An export with missing batches."""

    export_id: str
    workbook_id: str | None
    external_id: str | None
    total: int
    indexes: tuple[int, ...]
    """The indexes of the batches that have arrived, sorted."""
    message_ids: tuple[str, ...]
    """The `svix-id`s of these batches, in the same order, for adding them again from a store."""
    held_bytes: int
    """The memory that these batches use, in bytes."""


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """The result of adding one webhook."""

    export: Export | None = None
    """The export that this webhook completed."""
    duplicate: bool = False
    """Whether the event had arrived before. Respond with 2xx, as to the first delivery."""
    given_up: tuple[Incomplete, ...] = ()
    """Exports that were dropped to free memory. Their batches are forgotten, so that they can be added again."""


class _Pending:
    """An export that is not complete yet."""

    __slots__ = ("first", "held", "held_bytes", "total")

    def __init__(self, first: Batch) -> None:
        self.first = msgspec.structs.replace(first, sheets=(), body=b"")
        self.total, self.held_bytes = first.total, 0
        self.held: dict[int, tuple[str, bytes]] = {}
        """The message id and the body of each batch, by index."""

    def expects(self) -> range:
        """Return the indexes that are possible: an export counts from 0 or from 1."""
        return range(self.total in self.held, self.total + (0 not in self.held))

    def in_order(self) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
        held = [self.held[index] for index in sorted(self.held)]
        return tuple(message_id for message_id, _ in held), tuple(body for _, body in held)


@final
class Reassembler:
    """Collects batches until their export is complete.

    `max_bytes`: the most memory for batches. A batch counts as the length of its body plus 512 bytes. To make room
    for a batch, the exports that have waited longest for their next batch are dropped as a whole; `Added.given_up`
    lists them. `remembered`: the number of message ids, and of complete exports, whose repeats are recognised.

    Raises `InvalidInput` for a limit below 1.
    """

    __slots__ = ("_bytes", "_done", "_max_bytes", "_pending", "_remembered", "_seen")

    @checked_call
    def __init__(self, *, max_bytes: int = 128 * 1024**2, remembered: int = 10_000) -> None:
        for name, bound in (("max_bytes", max_bytes), ("remembered", remembered)):
            if bound < 1:
                raise InvalidInput(name, bound, "must be at least 1")
        self._max_bytes, self._bytes = max_bytes, 0
        self._pending: dict[str, _Pending] = {}
        """Incomplete exports by id, in the order in which their latest batches arrived."""
        self._remembered = remembered
        self._done: dict[str, range] = {}
        """The indexes of the latest complete exports."""
        self._seen: dict[str, tuple[str, int]] = {}
        """The export and index of the latest batches, by message id."""

    @property
    def held_bytes(self) -> int:
        """The memory that all incomplete exports use, in bytes. It never exceeds `max_bytes`."""
        return self._bytes

    def __repr__(self) -> str:
        return f"<Reassembler: {len(self._pending)} exports, {self._bytes} of {self._max_bytes} bytes>"

    def incomplete(self) -> tuple[Incomplete, ...]:
        """Return the incomplete exports. The one that has waited longest for its next batch is first."""
        return tuple(_incomplete(pending) for pending in self._pending.values())

    def add(self, event: Event) -> Added:
        """Add the result of `receive` or `decode`, and return what it completed.

        Raises `WebhookRefused`, without any change, for a batch that contradicts the others of its export
        (another total, workbook or form, an impossible index, other content at the same index), and for a batch
        of an export that is larger than `max_bytes`.
        """
        if isinstance(event, OtherEvent):
            return self._other(event)
        pending = self._pending.get(event.export_id) or _Pending(event)
        _check_same_export(pending, event)
        if event.index in pending.held:
            _check_same_content(pending.held[event.index][1], event)
            return Added(duplicate=True)
        if self._is_done(event):
            return Added(duplicate=True)
        if event.index not in pending.expects():
            raise WebhookRefused(
                "$.batch.index",
                f"is {event.index} of {event.total}, but the other batches count from {int(not event.index)}",
            )
        given_up = self._make_room(pending, event)
        self._hold(pending, event)
        return Added(export=self._finished(pending), given_up=given_up)

    def _other(self, event: OtherEvent) -> Added:
        duplicate = bool(event.message_id) and self._seen.get(event.message_id) is not None
        self._remember(event.message_id, ("", 0))
        return Added(duplicate=duplicate)

    def _is_done(self, batch: Batch) -> bool:
        """Return whether a batch belongs to an export that is complete already. Raises `WebhookRefused`."""
        indexes = self._done.get(batch.export_id)
        if indexes is None:
            return self._seen.get(batch.message_id) == (batch.export_id, batch.index)
        if batch.total != len(indexes) or batch.index not in indexes:
            raise WebhookRefused(
                "$.batch.index",
                f"is {batch.index} of {batch.total}, but the export was complete with {len(indexes)}",
            )
        return True

    def _make_room(self, pending: _Pending, batch: Batch) -> tuple[Incomplete, ...]:
        if len(pending.held) + 1 == pending.total:
            return ()  # this batch completes the export, so nothing of it is kept
        cost = _cost(batch.body)
        if pending.held_bytes + cost > self._max_bytes:
            raise WebhookRefused(
                "$.batch",
                f"does not fit: export {batch.export_id} has {pending.held_bytes} bytes so far, this batch {cost}, "
                f"and max_bytes is {self._max_bytes}",
            )
        given_up: list[Incomplete] = []
        for oldest in tuple(self._pending.values()):
            if self._bytes + cost <= self._max_bytes:
                break
            if oldest is not pending:
                given_up.append(self._give_up(oldest))
        return tuple(given_up)

    def _give_up(self, pending: _Pending) -> Incomplete:
        for message_id, _ in pending.held.values():
            self._seen.pop(message_id, None)  # so that it is accepted if it is sent again
        self._remove(pending)
        return _incomplete(pending)

    def _remove(self, pending: _Pending) -> None:
        del self._pending[pending.first.export_id]
        self._bytes -= pending.held_bytes

    def _hold(self, pending: _Pending, batch: Batch) -> None:
        pending.held[batch.index] = (batch.message_id, batch.body)
        pending.held_bytes += _cost(batch.body)
        self._bytes += _cost(batch.body)
        self._pending.pop(batch.export_id, None)
        self._pending[batch.export_id] = pending
        self._remember(batch.message_id, (batch.export_id, batch.index))

    def _remember(self, message_id: str, place: tuple[str, int]) -> None:
        if message_id:
            self._seen[message_id] = place
            _shorten(self._seen, self._remembered)

    def _finished(self, pending: _Pending) -> Export | None:
        if len(pending.held) < pending.total:
            return None
        self._remove(pending)
        lowest = min(pending.held)
        self._done[pending.first.export_id] = range(lowest, lowest + pending.total)
        _shorten(self._done, self._remembered)
        message_ids, bodies = pending.in_order()
        first = pending.first
        origin = {name: getattr(first, name) for name in Origin.__struct_fields__}
        return Export(id=first.export_id, message_ids=message_ids, bodies=bodies, **origin)


def _shorten(entries: dict[str, T], size: int) -> None:
    """Forget the oldest entry if there are more than `size`."""
    if len(entries) > size:
        del entries[next(iter(entries))]


def _cost(body: bytes) -> int:
    return len(body) + _OVERHEAD


def _check_same_export(pending: _Pending, batch: Batch) -> None:
    first = pending.first
    for field, known, new in (
        ("$.batch.total", first.total, batch.total),
        ("$.workbook_id", first.workbook_id, batch.workbook_id),
        ("$.version", "nested" if first.nested else "flat", "nested" if batch.nested else "flat"),
    ):
        if known != new and new is not None and known is not None:
            raise WebhookRefused(field, f"is {new!r}, but was {known!r} before in export {batch.export_id}")


def _check_same_content(held: bytes, batch: Batch) -> None:
    """Refuse a batch whose content differs from that at its index. The same content may be encoded differently."""
    if held == batch.body:
        return
    first = decode(held)
    if not isinstance(first, Batch) or first.sheets != batch.sheets:
        raise WebhookRefused(
            "$.batch.index", f"{batch.index} of export {batch.export_id} arrived before with other content"
        )


def _incomplete(pending: _Pending) -> Incomplete:
    return Incomplete(
        export_id=pending.first.export_id,
        workbook_id=pending.first.workbook_id,
        external_id=pending.first.external_id,
        total=pending.total,
        indexes=tuple(sorted(pending.held)),
        message_ids=pending.in_order()[0],
        held_bytes=pending.held_bytes,
    )


def _joined(parts: list[SheetRows]) -> SheetRows:
    rows = tuple(row for part in parts for row in part.rows)
    end = parts[-1].end_row_index
    return msgspec.structs.replace(parts[0], row_count=len(rows), end_row_index=end, rows=rows)
