"""The script that keeps a shared window, called at times that a test chooses."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from typing import Any

import redis

SCRIPT = resources.files("asyncmig.distributed").joinpath("window.lua").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Turn:
    granted: bool
    wait: float
    slots: int
    burst: int
    used: int
    clients: int
    held: float
    epoch: str = ""
    turn: int = 0
    lost: bool = False


class Script:
    """One budget in a real Redis, on a clock of the test's own."""

    def __init__(
        self,
        url: str,
        prefix: str,
        *,
        limit: int = 100,
        window: float = 60.0,
        timeout: float = 60.0,
        speed: float = 1.0,
    ) -> None:
        self.redis: Any = redis.Redis.from_url(url)
        self.run = self.redis.register_script(SCRIPT)
        parts = ("state", "slots", "unanswered", "accepted", "clients")
        self.keys = [f"{prefix}:{{x}}:{part}" for part in parts]
        self.calls = 0
        self.rate, self.settings = (limit, window), (timeout, speed)

    def __call__(
        self,
        now: float | None,
        *reports: tuple[str, str, float],
        want: str = "",
        client: str = "c",
        random: float = 0.5,
    ) -> Turn:
        (turn,) = together([self], now, reports, want=want, client=client, random=random)
        return turn

    def state(self, name: str) -> float:
        return float(self.redis.hget(self.keys[0], name))

    def forget(self, *parts: int) -> None:
        """Lose everything, as a Redis does that was killed; or some keys only, as one does that is full."""
        self.redis.delete(*([self.keys[part] for part in parts] or self.keys))

    def copies(self) -> dict[str, bytes]:
        """Return what Redis holds, as a replica has it that falls behind from now on."""
        return {key: dump for key in self.keys if (dump := self.redis.dump(key)) is not None}

    def restore(self, copies: dict[str, bytes]) -> None:
        """Let that replica take over."""
        self.forget()
        for key, dump in copies.items():
            self.redis.restore(key, 0, dump)


def together(
    scripts: Sequence[Script],
    now: float | None,
    *reports: Sequence[tuple[str, str, float]],
    want: str = "",
    client: str = "c",
    random: float = 0.5,
) -> list[Turn]:
    """Ask for a slot of several budgets at once; `reports` are those of the first of them."""
    first = scripts[0]
    first.calls += 1
    name = "+".join(str(n) for n in range(len(scripts))) if len(scripts) > 1 else ""
    arguments: list[object] = [client, *first.settings, random, want, "" if now is None else now, name]
    for script, told in zip_longest(scripts, reports, fillvalue=()):
        arguments += [*script.rate, len(told), *(part for one in told for part in one)]
    keys = [key for script in scripts for key in script.keys[:4]]
    replies = first.run([*keys, first.keys[4]], arguments)
    return [
        Turn(
            bool(granted),
            float(wait),
            slots,
            burst,
            used,
            clients,
            float(held),
            epoch.decode(),
            turn,
            bool(lost),
        )
        for granted, wait, slots, burst, used, clients, held, epoch, turn, lost in replies
    ]
