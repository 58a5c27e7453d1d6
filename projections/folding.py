"""Folding: batches of events into a view, each batch one transaction.

Owns: what happens when ``apply`` raises: everything before the event is stored, the event and what follows is not, and
the view says where it stopped. Must not know: where events come from, who is active. Invariant: the checkpoint that is
returned is the view's, and every event up to it is in the view once.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

from agentfield import Erasure, Event, ProjectionError
from projections.projection import Projection
from projections.source import Batch, Batches
from projections.view import Fold, Head, Step, TooMuch, View

BATCH = 500
"""Events in one transaction at most."""
_LONG = 0.5
"""Seconds that a transaction should take at most: until its end nobody sees anything of it, and nothing can be paused,
or stopped."""
_FIRST = 50
"""Events in the first transaction, before it is known how long one takes."""

_RAISED = (Exception, SystemExit, asyncio.CancelledError)
"""What stops a projection when ``apply`` raises it: also what would end the program, or the runner's task."""


@dataclass
class _Failed(Exception):
    """``apply`` raised for the event with this index of its batch."""

    index: int
    cause: BaseException


class Folder:
    """Folds the events of a projection into one generation of its view."""

    def __init__(self, projection: Projection, view: View, head: Head) -> None:
        self._projection = projection
        self._view = view
        self._erased = head.erased
        self.checkpoint = head.checkpoint
        """Up to where everything is in the view."""
        self.most = _FIRST
        """How many events a batch should have at most, so that its transaction is not long."""

    async def through(self, feed: Batches, target: int) -> None:
        """Fold everything up to sequence ``target``, which the log has reached. Raises as :meth:`take`."""
        async for batch in feed.until(target, lambda: self.most):
            await self.take(batch)
        if self.checkpoint < target:  # nothing is there between the last event and the target
            await self.take(Batch(target))

    async def take(self, batch: Batch) -> None:
        """Fold one batch.

        Raises :class:`ProjectionError` if it cannot; then everything before the event at fault is in the view, and the
        view says so. Raises :class:`~projections.view.Moved` if the view is not ours to advance.
        """
        began = time.monotonic()
        try:
            await self._advance(batch.events, batch.last, batch.skipped)
        except _Failed as failed:
            await self._fail(batch, failed)
        except TooMuch as too_much:
            await self._halve(batch, too_much)
        else:
            self._measure(len(batch.events), time.monotonic() - began)

    def _measure(self, events: int, seconds: float) -> None:
        """Let the next batch be as large as fits into the time that a transaction should take."""
        if seconds > _LONG:
            self.most = max(1, int(events * _LONG / seconds))
        elif seconds < _LONG / 2:
            self.most = min(BATCH, self.most * 2)

    async def _advance(self, events: Sequence[Event], last: int, skipped: Sequence[int]) -> None:
        done = sum(self.checkpoint < sequence <= last for sequence in skipped)
        await self._view.advance(Step(self.checkpoint, last, len(events), done, self._erased), self._fold(events))
        self.checkpoint = last

    def _fold(self, events: Sequence[Event]) -> Fold:
        apply = self._projection.apply

        async def goes_on(began: int, first: Awaitable[None], view: Any) -> None:
            index = began
            try:
                await first
                for index in range(began + 1, len(events)):
                    result = apply(events[index], view)
                    if inspect.isawaitable(result):
                        await result
            except _RAISED as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise  # it is we who are cancelled
                raise _Failed(index, error) from error

        def fold(view: Any) -> Awaitable[None] | None:
            index = 0
            try:
                for index, event in enumerate(events):
                    result = apply(event, view)
                    if result is not None and inspect.isawaitable(result):
                        return goes_on(index, result, view)
            except _RAISED as error:
                raise _Failed(index, error) from error
            return None

        return fold

    async def _halve(self, batch: Batch, too_much: TooMuch) -> None:
        """Fold one half after the other. Raises :class:`ProjectionError` if it is one event that is too much."""
        if len(batch.events) == 1:
            await self._fail(batch, _Failed(0, too_much))
        half = len(batch.events) // 2
        first, second = batch.events[:half], batch.events[half:]
        await self.take(Batch(first[-1].revision, first, batch.skipped))
        await self.take(Batch(batch.last, second, batch.skipped))

    async def _fail(self, batch: Batch, failed: _Failed) -> None:
        """Store what came before the event, note the failure, and raise it."""
        event = batch.events[failed.index]
        before = batch.events[: failed.index]
        name = self._projection.name
        message = f"{type(failed.cause).__name__}: {failed.cause}"
        try:
            await self._advance(before, event.revision - 1, batch.skipped)
        except _Failed as again:  # what went well a moment ago does not now
            event = before[again.index]
            message = f"{type(again.cause).__name__}: {again.cause}"
        await self._view.stop(message, event.revision)
        raise ProjectionError(
            f"projection {name} stopped at event {event.revision}, {event.key!r}: {message}",
            projection=name,
            sequence=event.revision,
        ) from failed.cause


def forgetting(projection: Projection, erasures: Sequence[Erasure]) -> Fold | None:
    """What takes erased values out of a view; None if the projection does not say how."""
    if type(projection).erase is Projection.erase:
        return None

    async def goes_on(began: int, first: Awaitable[None], view: Any) -> None:
        await first
        for erasure in erasures[began + 1 :]:
            result = projection.erase(erasure, view)
            if result is not None:
                await result

    def forget(view: Any) -> Awaitable[None] | None:
        for index, erasure in enumerate(erasures):
            result = projection.erase(erasure, view)
            if result is not None:
                return goes_on(index, result, view)
        return None

    return forget


def preparing(projection: Projection) -> Fold:
    """What prepares an empty view. Raises :class:`ProjectionError` if the projection cannot."""

    def failed(error: Exception) -> ProjectionError:
        return ProjectionError(
            f"projection {projection.name} cannot prepare its view: {type(error).__name__}: {error}",
            projection=projection.name,
        )

    async def goes_on(result: Awaitable[None]) -> None:
        try:
            await result
        except Exception as error:
            raise failed(error) from error

    def prepare(view: Any) -> Awaitable[None] | None:
        try:
            result = projection.prepare(view)
        except Exception as error:
            raise failed(error) from error
        return goes_on(result) if inspect.isawaitable(result) else None

    return prepare
