"""Calls of the Lua script of shared windows, at times that a test chooses."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import zip_longest
from typing import Any
from uuid import uuid4

import redis
from mortal import Life

from asyncmig._core.run_table import RunStore
from asyncmig.distributed.budget_store import BudgetReply, SharedBudget, SlotReport, name_of_set

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


def empty(url: str, prefix: str) -> None:
    """Lose the data of all budgets whose keys begin with `prefix`."""
    with redis.Redis.from_url(url) as client:
        if keys := client.keys(f"{prefix}:*"):
            client.delete(*keys)


class Script:
    """One budget in a real Redis. The test sets the time of each call."""

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
        """Delete all keys, as when Redis was killed, or only those of `parts`, as when its memory is full."""
        self.redis.delete(*([self.keys[part] for part in parts] or self.keys))

    def copies(self) -> dict[str, bytes]:
        """Return the data in Redis, as a replica has it that gets no further updates."""
        return {key: dump for key in self.keys if (dump := self.redis.dump(key)) is not None}

    def restore(self, copies: dict[str, bytes]) -> None:
        """Replace the data in Redis with `copies`, as when that replica becomes the primary."""
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
    """Request a slot of several budgets at once. `reports`: those of each budget, in order; may be fewer."""
    first = scripts[0]
    first.calls += 1
    name = "+".join(str(n) for n in range(len(scripts))) if len(scripts) > 1 else ""
    arguments: list[object] = [client, *first.settings, random, want, "" if now is None else now, name]
    for script, reported in zip_longest(scripts, reports, fillvalue=()):
        arguments += [*script.rate, len(reported), *(part for report in reported for part in report)]
    keys = [key for script in scripts for key in script.keys[:4]]
    replies = first.run([*keys, first.keys[4]], arguments)
    return [_turn_of(reply) for reply in replies]


class ScriptedWindow:
    """The shared window of one process: the script in a real Redis, with the clock of the running loop.

    It does not answer after the process of `life` has died. Each exchange takes `latency` seconds of the loop.
    """

    processes = 4

    def __init__(self, url: str, prefix: str, runs: RunStore, life: Life, *, latency: float = 0.005) -> None:
        self._redis, self._prefix, self._runs, self.life = redis.Redis.from_url(url), prefix, runs, life
        self.latency, self.client = latency, uuid4().hex
        self.script: Any = self._redis.register_script(SCRIPT)

    def budgets(
        self, budgets: Sequence[SharedBudget], *, account: str, timeout: float, speed: float
    ) -> "ScriptedBudgets":
        return ScriptedBudgets(self, self._prefix, budgets, timeout)

    def runs(self, account: str) -> "MortalRuns":
        return MortalRuns(self._runs, self.life)

    async def aclose(self) -> None:
        self._redis.close()


class ScriptedBudgets:
    """Budgets that a client charges together."""

    def __init__(
        self, window: ScriptedWindow, prefix: str, budgets: Sequence[SharedBudget], timeout: float
    ) -> None:
        self._window, self._budgets, self._timeout = window, budgets, timeout
        self._keys = [
            f"{prefix}:{{x}}:{budget.name}:{part}"
            for budget in budgets
            for part in ("state", "slots", "unanswered", "accepted")
        ] + [f"{prefix}:{{x}}:clients"]

    async def exchange(
        self, reports: Sequence[Sequence[SlotReport]], want: str | None
    ) -> Sequence[BudgetReply]:
        async with self._window.life.point("exchange"):
            await asyncio.sleep(self._window.latency)
            now = asyncio.get_running_loop().time()
            settings = (self._window.client, self._timeout, 1.0, 0.5, want or "", now)
            arguments: list[object] = [*settings, name_of_set(self._budgets)]
            for budget, reported in zip(self._budgets, reports, strict=True):
                arguments += [budget.limit, budget.window, len(reported)]
                arguments += [part for report in reported for part in report]
            replies = self._window.script(self._keys, arguments)
        return [BudgetReply(**asdict(turn)) for turn in map(_turn_of, replies)]


class MortalRuns:
    """The shared run slots, in a process that may die."""

    def __init__(self, store: RunStore, life: Life) -> None:
        self._store, self._life = store, life
        self.reach = store.reach

    async def update(self, change: Callable[[bytes, float], bytes], *, speed: float) -> None:
        async with self._life.point("runs"):
            await self._store.update(change, speed=speed)


def _turn_of(reply: Sequence[Any]) -> Turn:
    granted, wait, slots, burst, used, clients, held, epoch, turn, lost = reply
    return Turn(
        bool(granted), float(wait), slots, burst, used, clients, float(held), epoch.decode(), turn, bool(lost)
    )
