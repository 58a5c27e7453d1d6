"""Erasures, as views that hold plain values meet them: which ones a view still owes, and saying that it owes none.

Owns: the way from a notice of an erasure in the log to the runner that keeps a view, at once or when it runs next.
Another door to the inside of agentfield. Must not know: how a view drops what was erased. Invariants: a view that was
folded before a notice owes that erasure until it has been dropped; an erasure is confirmed only after that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from agentfield import AccessDeniedError, Erasure, ProjectionError
from agentfield.event import Writer
from agentfield.fabric.wire.connection import ConnectionState
from agentfield.memory import views
from agentfield.pattern import overlaps
from projections.projection import Selection
from projections.source import EVERY_MESSAGE, Source, filters_of
from projections.view import Head

logger = logging.getLogger("agentfield.projections")

_WRITER = Writer(agent="agentfield-projections")


class Erasures:
    """The erasures in the log of one source, for one view of a projection, by the name that it is registered under.

    For a view that holds no values (``keeps`` is false), there are none.
    """

    def __init__(self, source: Source, projection: str, view: str, *, keeps: bool = True) -> None:
        self.name = view
        self._projection = projection
        self._keeps = keeps
        self._fabric = source.fabric
        self._source = source
        self._wanted = 0
        self._honoured = 0
        self._heard = False
        self._listens = False
        self._ended = True
        self._changed = asyncio.Condition()

    @property
    def possible(self) -> bool:
        """Whether anything was ever declared personal here: else nothing can be erased, and nothing is asked."""
        return self._keeps and self._fabric.keys.policies.declared

    @property
    def deaf(self) -> bool:
        """Whether there is more to be listened to than when the listening began."""
        return self.possible and not self._listens

    @property
    def heard(self) -> bool:
        """Whether the view should be looked at: something was erased, or may have been while we did not hear."""
        return self._heard or self._wanted > self._honoured or self.deaf

    async def last(self) -> int:
        """The newest notice; from here on, no key that was destroyed before it is taken from memory."""
        if not self.possible:
            return 0
        self._heard = False
        last = await views.last_notice(self._fabric)
        self._fabric.keys.forget()
        return last

    async def after(self, revision: int) -> list[Erasure]:
        """The erasures whose notices come after a revision."""
        return await views.notices(self._fabric, revision) if self.possible else []

    def concern(self, selection: Selection, erasures: list[Erasure]) -> bool:
        """Whether a view of this selection may hold something of what was erased."""
        ours = filters_of(self._source, selection)
        subjects = self._fabric.subjects
        return any(
            overlaps(one, other)
            for erasure in erasures
            for one in subjects.filters([erasure.pattern], erasure.scopes)
            for other in ours
        )

    async def honoured(self, revision: int) -> None:
        """Register the view as one that owes nothing up to this notice, and tell whoever waits for that."""
        if not self.possible:
            return
        try:
            await views.confirm(self._fabric, self.name, revision, _WRITER)
        except AccessDeniedError as error:
            logger.warning(
                "view %s cannot be registered, so receipts of erasures will not name it: %s", self.name, error
            )
        async with self._changed:
            self._honoured = max(self._honoured, revision)
            self._changed.notify_all()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Be told of what is erased during the block."""

        async def drop(erasure: Erasure) -> None:
            async with self._changed:
                self._wanted = max(self._wanted, erasure.revision)
                await self._changed.wait_for(lambda: self._ended or self._honoured >= erasure.revision)
                if self._honoured < erasure.revision:
                    raise ProjectionError("it ended before it had dropped that", projection=self._projection)

        def reconnected(state: ConnectionState) -> None:
            self._heard = self._heard or (state == "connected" and self.possible)

        async with AsyncExitStack() as stack:
            if self.possible:
                self._listens = True
                try:
                    await stack.enter_async_context(views.listening(self._fabric, self.name, drop))
                except AccessDeniedError as error:
                    logger.warning("view %s is not told of erasures until it is opened again: %s", self.name, error)
                stack.callback(self._fabric.connection.on_state(reconnected))
            self._ended = False
            try:
                yield
            finally:
                self._listens = False
                async with self._changed:
                    self._ended = True
                    self._changed.notify_all()

    async def unregister(self) -> None:
        """Take the view off the register: it is removed."""
        if self.possible:
            await views.unregister(self._fabric, self.name, _WRITER)


async def owed(source: Source, head: Head) -> int:
    """How many erasures a view owes by what its head says."""
    if head.selection == EVERY_MESSAGE or not source.fabric.keys.policies.declared:
        return 0
    return len(await views.notices(source.fabric, head.erased))


async def owed_elsewhere(source: Source, local: set[str]) -> dict[str, int]:
    """The registered views, but for those, that have not confirmed every erasure, and how many they owe."""
    if not source.fabric.keys.policies.declared:
        return {}
    register = {name: handled for name, handled in (await views.registered(source.fabric)).items() if name not in local}
    owed = {name: len(await views.notices(source.fabric, handled)) for name, handled in register.items()}
    return {name: count for name, count in owed.items() if count}
