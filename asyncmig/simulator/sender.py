"""Deliver webhooks over HTTP as the service behind the API does: at least once, each delivery signed anew."""

import asyncio
from collections.abc import Callable, Iterable

import aiohttp

from asyncmig.simulator.webhooks import Webhook

__all__ = ["send"]

_PATIENCE = aiohttp.ClientTimeout(total=15.0)


async def send(
    url: str,
    webhooks: Iterable[Webhook],
    *,
    secret: str,
    clock: Callable[[], float],
    attempts: int = 3,
    pause: float = 5.0,
) -> list[list[int]]:
    """Post each webhook to `url` until it is answered with 2xx, at most `attempts` times, `pause` seconds apart.

    `clock` gives seconds since 1970, for the signatures. Returns the statuses that each one met; 0 for no answer.
    """
    async with aiohttp.ClientSession(timeout=_PATIENCE) as http:
        return [await _deliver(http, url, webhook, secret, clock, attempts, pause) for webhook in webhooks]


async def _deliver(
    http: aiohttp.ClientSession,
    url: str,
    webhook: Webhook,
    secret: str,
    clock: Callable[[], float],
    attempts: int,
    pause: float,
) -> list[int]:
    statuses: list[int] = []
    while len(statuses) < attempts and not (statuses and 200 <= statuses[-1] < 300):
        if statuses:
            await asyncio.sleep(pause)
        statuses.append(await _post(http, url, webhook.body, webhook.headers(secret, clock())))
    return statuses


async def _post(http: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str]) -> int:
    try:
        async with http.post(
            url,
            data=body,
            headers={**headers, "Content-Type": "application/json"},
            allow_redirects=False,
        ) as response:
            return response.status
    except (aiohttp.ClientError, TimeoutError):
        return 0
