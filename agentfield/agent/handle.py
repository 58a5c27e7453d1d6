"""An agent's way to the fabric: opened when first needed, one for each event loop, closed when the loop ends.

Owns: the lifetimes of a fabric and of the calls made over it. Must not know: what they are used for. Invariant: after
:meth:`Handle.aclose` nothing is opened any more; a loop that ends takes its connection with it, closed properly, so a
plain script need not close anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from agentfield.errors import ClosedError
from agentfield.fabric.calling.calls import Calls
from agentfield.fabric.fabric import Fabric


class Link:
    """What is open in one event loop."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.calls = Calls(fabric.connection)
        self._guard = self._while_loop_lives()

    async def _while_loop_lives(self) -> AsyncGenerator[None, None]:
        # asyncio.run() closes the asynchronous generators of its loop as its last act; that is the hook we need.
        try:
            yield
        finally:
            await self.calls.aclose()
            await self.fabric.aclose()

    async def open(self) -> Link:
        """From now on, be closed with the loop."""
        await anext(self._guard)
        return self

    async def aclose(self) -> None:
        """Close now. Idempotent."""
        await self._guard.aclose()


class Handle:
    """Opens with ``opener`` on first use in a loop."""

    def __init__(self, opener: Callable[[], Awaitable[Fabric]], *, owner: str) -> None:
        self._opener = opener
        self._owner = owner
        self._links: dict[asyncio.AbstractEventLoop, Link] = {}
        self._locks: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}
        self._closed = False

    async def link(self) -> Link:
        """The link of the running loop. Raises ClosedError after :meth:`aclose`, and whatever opening raises."""
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is not None:
            return link
        self._check_open()
        for old in [old for old in self._locks if old.is_closed()]:
            self._links.pop(old, None)
            del self._locks[old]
        async with self._locks.setdefault(loop, asyncio.Lock()):
            self._check_open()
            if loop not in self._links:
                self._links[loop] = await Link(await self._opener()).open()
            return self._links[loop]

    async def fabric(self) -> Fabric:
        """The fabric of the running loop; raises as :meth:`link` does."""
        return (await self.link()).fabric

    @property
    def loops(self) -> list[asyncio.AbstractEventLoop]:
        """The loops in which it is open, those left out that have ended."""
        return [loop for loop in self._links if not loop.is_closed()]

    async def aclose(self) -> None:
        """Close what is open in the running loop, and open no more. Idempotent."""
        self._closed = True
        loop = asyncio.get_running_loop()
        async with self._locks.setdefault(loop, asyncio.Lock()):
            link = self._links.pop(loop, None)
            if link is not None:
                await link.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self._owner} is closed: make a new one")
