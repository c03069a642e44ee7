"""Where the contract is silent: what this server does there. A client must be right under all of it."""

from dataclasses import dataclass
from random import Random

__all__ = ["Variants"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants:
    """One reading of each silence; the numbers are those of the contract's list."""

    replay_status: int = 200
    """1: how a repeat under a known idempotency key is answered, 200 or 201."""
    replay_shows: str = "present"
    """1: the status in that answer, `present` or `queued`."""
    name_first: bool = False
    """2: a name that is taken (400) is noticed before an external id that is taken (409)."""
    existing: bool = False
    """2: a company with a known external id is answered with 200 and the company."""
    active: str = "bare"
    """3: the active import `bare`, `wrapped` in `run`, or `anonymous`, without its id."""
    parks_twice: bool = False
    """5: after an approval the run parks once more, its questions under the same ids."""
    rejected_keeps: bool = False
    """7: a rejected run leaves its valid rows."""
    zip_status: int = 200
    """9: the archive of all sheets: 200, or 404 or 501 where it does not exist yet."""
    catalogue: bool = True
    """9: sources and templates can be listed; otherwise 404."""
    unconnected_export: str = "fails"
    """10: an export without a connection is `refused`, or its run `fails`."""
    park_lasts: float | None = None
    """12: seconds after which a park expires into `failed`."""
    strange_status: str | None = None
    """12: a status that the contract does not name, shown while the run is running."""
    poll_url: str = "path"
    """13: a `path`, or `foreign`: absolute, to another host."""
    drift: bool = False
    """15: numbers as strings, null for what is optional, fields that nobody knows."""
    error_body: bool = True
    """15: errors come with their text; otherwise with an empty body."""
    lag: float = 0.0
    """18: seconds in which a run that was just created answers 404."""

    @classmethod
    def drawn(cls, rng: Random) -> "Variants":
        """Return a random reading of everything."""
        return cls(
            replay_status=rng.choice((200, 201)),
            replay_shows=rng.choice(("present", "queued")),
            name_first=rng.random() < 0.5,
            existing=rng.random() < 0.3,
            active=rng.choice(("bare", "wrapped", "anonymous")),
            parks_twice=rng.random() < 0.3,
            rejected_keeps=rng.random() < 0.5,
            zip_status=rng.choice((200, 404, 501)),
            catalogue=rng.random() < 0.7,
            unconnected_export=rng.choice(("refused", "fails")),
            strange_status=rng.choice((None, "blocked", "paused")),
            poll_url=rng.choice(("path", "foreign")),
            drift=rng.random() < 0.5,
            error_body=rng.random() < 0.7,
            lag=rng.choice((0.0, 5.0, 15.0)),
        )
