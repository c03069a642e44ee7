"""Blocking work in a thread that ends before its caller goes on, also when the caller is cancelled."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import anyio

__all__ = ["in_thread"]

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function` in the loop's executor and return what it returns.

    Cancelled, this waits for the thread first: a file must not be closed while another thread reads it. The loop's
    own executor, because a loop with a virtual clock can tell that it has work.
    """
    work = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            while not work.done():
                try:
                    await asyncio.wait([work])
                except asyncio.CancelledError:
                    continue
        if not work.cancelled():
            work.exception()
        raise
