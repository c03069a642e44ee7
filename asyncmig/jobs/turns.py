"""The order in which the customers of a fleet begin: the largest first."""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast, final

from asyncmig.customers.files import customer_folder
from asyncmig.customers.paths import FolderLookup, Keys, keys_of
from asyncmig.customers.spec import CheckedSpec, Spec, check_different
from asyncmig.errors import InvalidInput

__all__ = ["Turns", "largest_first"]

_LONGEST_READ = 60.0
"""Seconds for which a customer waits while others read their files, because reads of a network drive may hang."""


def largest_first(given: Sequence[CheckedSpec], to: Path) -> tuple[Keys, list[CheckedSpec]]:
    """Return the keys that protect the files of `given`, and `given` sorted by size, each with the error in it.

    `to`: the folder of the customers' folders. Reads the file system. Raises `InvalidInput` for two specs of one
    customer.
    """
    specs = [spec for spec, refused in given if refused is None]
    check_different(specs)
    specs.sort(key=_size, reverse=True)
    folders = FolderLookup(customer_folder(to, spec.external_id) for spec in specs)
    bad = [each for each in given if each[1] is not None]
    ready = [*bad, *((spec, _misplaced(folders, spec, to)) for spec in specs)]
    files = (path for spec, _ in given for path in cast("tuple[object, ...]", spec.files))
    return keys_of(path for path in files if isinstance(path, Path)), ready


def _misplaced(folders: FolderLookup, spec: Spec, to: Path) -> InvalidInput | None:
    """Return the error of a customer whose sheets would replace its files, or another customer's sheets."""
    if other := folders.same.get(customer_folder(to, spec.external_id)):
        reason = f"has the same folder as another customer on this file system: {other}"
        return InvalidInput("external_id", spec.external_id, reason)
    for path in spec.files:
        if folder := folders.above(path):
            reason = f"lies below {folder}, where sheets are delivered: choose another folder"
            return InvalidInput("files", str(path), reason)
    return None


def _size(spec: Spec) -> int:
    """Return the total size of a customer's files; 0 if a file is missing, which the migration reports."""
    try:
        return spec.validate()
    except (InvalidInput, OSError):
        return 0


@final
class Turns:
    """The order of customers that begin together: their first requests are sent in this order.

    Their files are read in threads, which takes longest for the largest. Without an order, small customers would
    spend the limit meanwhile.
    """

    __slots__ = ("_first", "_over", "_waiting")

    def __init__(self) -> None:
        self._first = 0
        """All customers before this place had their turn, or have ended without one."""
        self._over = bytearray()
        self._waiting: dict[int, asyncio.Future[None]] = {}

    def place(self) -> int:
        """Return a place behind all earlier ones."""
        self._over.append(False)
        return len(self._over) - 1

    async def come(self, place: int) -> None:
        """Wait until each customer before this one had its turn or has ended, at most `_LONGEST_READ` seconds."""
        if self._first < place:
            loop = asyncio.get_running_loop()
            waiter = self._waiting[place] = loop.create_future()
            timer = loop.call_later(_LONGEST_READ, partial(self._give_up, place))
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiting.pop(place, None)
        self.end(place)

    def end(self, place: int) -> None:
        """End the turn of a place: from now on no customer waits for it."""
        self._over[place] = True
        self._wake(place)
        while self._first < len(self._over) and self._over[self._first]:
            self._first += 1
        self._wake(self._first)

    def _give_up(self, place: int) -> None:
        """Let this customer and those after it begin, although an earlier one has not had its turn."""
        self._first = max(self._first, place)
        self._wake(place)

    def _wake(self, place: int) -> None:
        waiter = self._waiting.pop(place, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
