"""The session of a command, and the journal that it needs."""

from pathlib import Path
from urllib.parse import urlsplit

from asyncmig._core.retry import RetryPolicy
from asyncmig._io.addresses import is_loopback
from asyncmig.cli.settings import Reach
from asyncmig.errors import InvalidInput
from asyncmig.journal import Journal
from asyncmig.session import Session

__all__ = ["check_journal", "open_session"]


async def check_journal(path: Path) -> None:
    """Raise `JournalError` unless `path` is a journal that this version can read. Nothing is created."""
    async with Journal(path, read_only=True):
        pass


def open_session(
    reach: Reach, journal: Path | None, api_key: str | None = None, *, retry: RetryPolicy | None = None
) -> Session:
    """Return a session that knows what the last one with this journal sent. `api_key`: `VERN_API_KEY` if not given.

    Without a journal it knows of no other, and writes nothing down.

    Raises `InvalidInput`, also for a faster clock with a server whose own clock does not run faster, too: it would
    be sent more than its limit.
    """
    session = Session(
        api_key,
        reach.base_url,
        limit=reach.rate.limit,
        window=reach.rate.window,
        scope=reach.scope,
        recent=None if journal is None else journal.with_name(f"{journal.name}.recent"),
        retry=retry,
    )
    if reach.speed != 1 and not is_loopback(session.base_url):
        host = urlsplit(session.base_url).hostname
        raise InvalidInput(
            "speed", reach.speed, f"is for the simulator on this machine, and {host} is another one"
        )
    return session
