"""The script that keeps a shared window, called at times that a test chooses."""

from dataclasses import dataclass
from importlib import resources
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
        self._run = self.redis.register_script(SCRIPT)
        parts = ("state", "slots", "unanswered", "accepted", "clients")
        self._keys = [f"{prefix}:{{x}}:{part}" for part in parts]
        self.calls = 0
        self._rate, self._settings = (limit, window), (timeout, speed)

    def __call__(
        self,
        now: float | None,
        *reports: tuple[str, str, float],
        want: str = "",
        client: str = "c",
        random: float = 0.5,
    ) -> Turn:
        self.calls += 1
        told = [part for one in reports for part in one]
        settings = [client, *self._settings, random, want, "" if now is None else now]
        (reply,) = self._run(self._keys, [*settings, *self._rate, len(reports), *told])
        granted, wait, slots, burst, used, clients, held, epoch, turn, lost = reply
        return Turn(
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

    def state(self, name: str) -> float:
        return float(self.redis.hget(self._keys[0], name))

    def forget(self, *parts: int) -> None:
        """Lose everything, as a Redis does that was killed; or some keys only, as one does that is full."""
        self.redis.delete(*([self._keys[part] for part in parts] or self._keys))

    def copies(self) -> dict[str, bytes]:
        """Return what Redis holds, as a replica has it that falls behind from now on."""
        return {key: dump for key in self._keys if (dump := self.redis.dump(key)) is not None}

    def restore(self, copies: dict[str, bytes]) -> None:
        """Let that replica take over."""
        self.forget()
        for key, dump in copies.items():
            self.redis.restore(key, 0, dump)
