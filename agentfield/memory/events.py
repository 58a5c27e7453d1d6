"""Events: reacting to changes, watching them, and looking back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, TypeVar

from agentfield.amount import check_count
from agentfield.errors import InvalidInputError
from agentfield.event import Event
from agentfield.fabric.consumers.consuming import Start
from agentfield.memory.addressing import Place, event_scopes
from agentfield.memory.base import Base
from agentfield.memory.history import check_writer, events_between, extent
from agentfield.memory.moment import check_point
from agentfield.memory.reacting.registration import Delivery, registration
from agentfield.memory.watch import CaughtUp, watching
from agentfield.pattern import Pattern

F = TypeVar("F", bound=Callable[[Event], Any])
_STARTS = ("new", "all", "current")


class Events(Base):
    """The operations on events."""

    def on_change(
        self,
        patterns: str | Sequence[str],
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        name: str | None = None,
        start: Start = "new",
        delivery: Delivery = "agent",
        concurrency: int = 1,
        retries: int = 5,
        timeout: float | None = None,
    ) -> Callable[[F], F]:
        """Declare a handler for changes of the keys that match a pattern (``*`` stands for one or more characters).

        Works at import time; the handler runs while its agent is served, in the event's workflow and session, at least
        once per event, in order per key. Without a scope it hears workflow, session and global with any id, and the
        agent's own actor scope.

        ``delivery="agent"``: each event goes to one instance, however many there are, and after a restart it goes on
        where it was. ``delivery="instance"``: each event goes to every instance, while it is served, and nothing is
        kept of how far it came; for what each process holds in its own memory.

        ``start`` says where a handler begins that has never run, and each time with ``delivery="instance"``: ``"new"``;
        ``"all"``, the whole past first; ``"current"``, the present values first, as events, and when all of these have
        been handled, every change since; an aware datetime that has come; or a revision.

        ``concurrency`` keys are handled in parallel. A handler that raises, or takes longer than ``timeout`` seconds,
        is tried ``retries`` more times with growing pauses; then the event goes to the dead letters.

        Raises :class:`InvalidInputError` at the declaration for anything that could never work, and if the agent serves
        already; :class:`ClosedError` if it is closed.
        """
        if self._agent is None:
            raise InvalidInputError(
                "on_change belongs to an agent: use app.memory.on_change, or `async for … in memory.watch()`"
            )
        if callable(patterns):
            raise InvalidInputError(
                f"on_change without a pattern for {getattr(patterns, '__name__', patterns)!r}: write "
                '@app.memory.on_change("order_*_status"), or ("*") to hear every key'
            )
        scopes = event_scopes(Place(None, None, self._actor_id, self._bound), scope, scope_id)

        def declare(function: F) -> F:
            declared = registration(
                function,
                patterns,
                scopes,
                name=name,
                start=start,
                delivery=delivery,
                concurrency=concurrency,
                retries=retries,
                timeout=timeout,
                schemas=self.schemas,
            )
            if any(other.name == declared.name for other in self.registrations):
                raise InvalidInputError(
                    f"agent {self._agent!r} has a handler named {declared.name!r} already: its progress is kept under "
                    "that name, so give this one another with on_change(…, name=…)"
                )
            if self._declaring is not None:
                self._declaring(declared.name)
            self.registrations.append(declared)
            return function

        return declare

    async def history(
        self,
        pattern: str = "*",
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
        reverse: bool = False,
        limit: int | None = None,
        writer: str | None = None,
    ) -> AsyncIterator[Event]:
        """The events of a key, or of every key that matches a pattern, oldest first; newest first with ``reverse``.

        Without a scope: of every workflow, session, the global scope, and the own actor. ``since`` and ``until`` are
        revisions (both included) or aware datetimes (``until`` excluded). ``limit`` ends after so many events: a next
        page begins with ``since=`` the last revision plus one (with ``reverse``: ``until=`` it minus one). ``writer``
        leaves those by one agent (its name) or one execution (its id). Whichever way, a part of them is in memory.

        Raises :class:`HistoryTruncatedError` if the log no longer holds what ``since`` asks for, or loses it meanwhile;
        without ``since``, it begins with what is left.
        """
        if limit is not None:
            check_count(limit, "limit", remedy=", or leave it out")
        check_writer(writer)
        for point, name in ((since, "since"), (until, "until")):
            if point is not None:
                check_point(point, name)
        patterns = [Pattern.parse(pattern)]
        scopes = event_scopes(self._place(), scope, scope_id)
        fabric = await self._fabric()
        part = await extent(fabric, since, until)
        async for event in events_between(
            fabric, patterns, scopes, part, reverse=reverse, limit=limit, writer=writer, schemas=self.schemas
        ):
            yield event

    async def watch(
        self,
        pattern: str = "*",
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        start: Start = "new",
    ) -> AsyncGenerator[Event | CaughtUp, None]:
        """Events as they happen, until the iteration ends; scopes as for ``on_change``, in this process alone.

        ``start``: ``"new"``; ``"current"``, the present values first, as events; ``"all"``, the whole past first; an
        aware datetime that has come; or a revision, the first one wanted. A :class:`CaughtUp` stands between what had
        happened before the call and what comes after. Events are taken from the server only as fast as they are
        consumed, and a few hundred at most wait here. Whoever cancels the wait for the next one, as ``asyncio.timeout``
        does, ends the iteration. Raises :class:`ResyncRequired` in the place of events that somebody has taken out of
        the log before they came.
        """
        if isinstance(start, str) and start not in _STARTS:
            raise InvalidInputError(f"start={start!r}: 'new', 'current', 'all', an aware datetime, or a revision")
        if not isinstance(start, str):
            check_point(start, "start")
        patterns = [Pattern.parse(pattern)]
        scopes = event_scopes(self._place(), scope, scope_id)
        fabric = await self._fabric()
        async with aclosing(watching(fabric, patterns, scopes, start, schemas=self.schemas)) as items:
            async for item in items:
                yield item
