"""Handlers: what ``on_change`` registers, and running it durably, in order per key, once per agent.

Owns: the path of an event from the consumer to the user's function: previous data, the execution it runs in, lanes that
keep one key in order while others go on, retries with backoff, the dead letters. Must not know: the wire. Invariants:
an event is reported done only when its handler returned or it lies in the dead letters; the events of one key are
handled one after the other, in the order of the log.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from agentfield import execution
from agentfield.codec import EVENT_ID, Record, decode_event
from agentfield.errors import AgentFieldError, ClosedError, DecodeError, InvalidInputError
from agentfield.event import Event
from agentfield.execution import Execution
from agentfield.fabric.consumer import Activated, ConsumerSpec, PinnedConsumer
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import AnyScope
from agentfield.memory.history import matching
from agentfield.memory.previous import PreviousTable
from agentfield.pattern import Pattern

logger = logging.getLogger("agentfield.handlers")

Handler = Callable[[Event], Any]
Start = Literal["new", "all"] | datetime | int

_FIRST_RETRY = 0.2
_LONGEST_RETRY = 30.0
_LANES = 500
"""Keys that may wait for a retry at once; with more, taking events pauses."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A handler as it was declared."""

    name: str
    function: Handler
    patterns: tuple[Pattern, ...]
    scopes: tuple[AnyScope, ...]
    start: Start
    concurrency: int
    retries: int
    timeout: float | None

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function; any other runs in a thread."""
        return inspect.iscoroutinefunction(self.function)


def registration(
    function: Handler,
    patterns: str | Sequence[str],
    scopes: tuple[AnyScope, ...],
    *,
    name: str | None,
    start: Start,
    concurrency: int,
    retries: int,
    timeout: float | None,
) -> Registration:
    """Validate a declaration. Raises :class:`InvalidInputError` with the fact and the remedy."""
    if not callable(function):
        raise InvalidInputError(f"on_change decorates a function, not {function!r}")
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        raise InvalidInputError(
            f"handler {getattr(function, '__name__', function)!r} must take one argument, the event"
        ) from None
    texts = [patterns] if isinstance(patterns, str) else list(patterns)
    if not texts:
        raise InvalidInputError("on_change needs at least one pattern; '*' hears every key")
    chosen = name if name is not None else function.__name__
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", chosen) is None:
        raise InvalidInputError(f"handler name {chosen!r}: 1 to 64 of A-Z a-z 0-9 _ -; give another with name=…")
    if not (start in ("new", "all") if isinstance(start, str) else _is_point(start)):
        raise InvalidInputError(f"start={start!r}: 'new', 'all', an aware datetime, or a revision")
    if concurrency < 1 or retries < 0 or (timeout is not None and timeout <= 0):
        raise InvalidInputError(
            f"concurrency={concurrency}, retries={retries}, timeout={timeout}: at least 1, at least 0, above 0 seconds"
        )
    return Registration(
        chosen, function, tuple(Pattern.parse(text) for text in texts), scopes, start, concurrency, retries, timeout
    )


def _is_point(start: object) -> bool:
    if isinstance(start, datetime):
        return start.tzinfo is not None
    return type(start) is int and start >= 0


def deliver_policy(start: Start) -> Mapping[str, Any]:
    """Where a new durable consumer begins, in the server's words. A revision is the first one delivered."""
    if start == "all":
        return {"deliver_policy": "all"}
    if isinstance(start, datetime):
        moment = start.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return {"deliver_policy": "by_start_time", "opt_start_time": moment}
    if isinstance(start, int):
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, start)}
    return {"deliver_policy": "new"}


class HandlerRun:
    """One handler of an agent in this process. ``prepare`` it, ``run`` it in a task of yours, ``stop`` it."""

    def __init__(self, fabric: Fabric, registration: Registration, *, agent: str, actor_id: str) -> None:
        self.name = registration.name
        self._fabric = fabric
        self._registration = registration
        self._agent = agent
        self._actor_id = actor_id
        self._filters = fabric.subjects.filters(registration.patterns, registration.scopes)
        self._table = PreviousTable(fabric.log, self._filters)
        self._consumer = PinnedConsumer(
            fabric.connection,
            ConsumerSpec(
                stream=fabric.log.stream,
                name=f"handler-{agent}-{registration.name}",
                filters=self._filters,
                start=deliver_policy(registration.start),
                description=f"on_change({', '.join(str(p) for p in registration.patterns)}) of agent {agent}",
                metadata={"agent": agent, "handler": registration.name},
            ),
        )
        self._lanes: dict[str, deque[tuple[Event, Record]]] = {}
        self._slots = asyncio.Semaphore(registration.concurrency)
        self._lane_room = asyncio.Semaphore(_LANES)

    async def prepare(self) -> None:
        """Create or update the durable consumer: from here on no event is missed."""
        await self._consumer.ensure()

    async def run(self) -> None:
        """Handle events until cancelled; whatever is being handled then is for the caller to await by ``stop``."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._consumer.run(), name=f"consumer of {self._registration.name}")
            await self._take(tasks)

    async def drain(self) -> None:
        """Take nothing more, and return when everything taken has been handled."""
        await self._consumer.drain()

    async def leave(self) -> None:
        """After ``run`` has ended: acknowledge, and let a standby take over at once."""
        await self._consumer.leave()

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        concurrent = self._registration.concurrency > 1
        while True:
            item = await self._consumer.next()
            if isinstance(item, Activated):
                await self._fill(item.floor)
                continue
            record = item.record
            event = await self._event(record) if not item.handled else None
            self._table.advance(record)
            if event is None:
                self._consumer.done(record.sequence)
                continue
            lane = self._lanes.get(record.subject)
            if lane is not None:
                lane.append((event, record))
            elif concurrent or self._slots.locked():
                await self._open_lane(tasks, event, record, attempt=0)
            elif not await self._once(event, record, attempt=0):
                await self._open_lane(tasks, event, record, attempt=1)

    async def _fill(self, floor: int) -> None:
        """Fill the table of previous values; without it no event may be handled, so this insists."""
        delay = _FIRST_RETRY
        while True:
            try:
                await self._table.fill(floor)
                return
            except AgentFieldError as error:
                logger.warning("handler %s: %s; trying again", self._registration.name, error)
                await asyncio.sleep(delay)
                delay = min(_LONGEST_RETRY, delay * 2)

    async def _event(self, record: Record) -> Event | None:
        """The event to handle, or None if the record is not for this handler."""
        delay = _FIRST_RETRY
        while True:
            try:
                if not matching(self._fabric, self._registration.patterns, record):
                    return None
                return decode_event(record, self._fabric.subjects, await self._table.of(record))
            except (DecodeError, InvalidInputError) as error:
                logger.error("handler %s skips a foreign message: %s", self._registration.name, error)
                return None
            except AgentFieldError as error:
                logger.warning("handler %s: %s; trying again", self._registration.name, error)
                await asyncio.sleep(delay)
                delay = min(_LONGEST_RETRY, delay * 2)

    async def _open_lane(self, tasks: asyncio.TaskGroup, event: Event, record: Record, *, attempt: int) -> None:
        """Go on with this key in a task of its own, so that other keys need not wait for it."""
        await self._lane_room.acquire()
        self._lanes[record.subject] = deque()
        tasks.create_task(self._lane(event, record, attempt), name=f"handler {self._registration.name} {event.key}")

    async def _lane(self, event: Event, record: Record, attempt: int) -> None:
        try:
            lane = self._lanes[record.subject]
            while True:
                while await self._still_ours(record, attempt) and not await self._once(event, record, attempt=attempt):
                    attempt += 1
                if not lane:
                    return
                (event, record), attempt = lane.popleft(), 0
        finally:
            del self._lanes[record.subject]
            self._lane_room.release()

    async def _still_ours(self, record: Record, attempt: int) -> bool:
        if attempt:
            await asyncio.sleep(min(_LONGEST_RETRY, _FIRST_RETRY * 2 ** (attempt - 1)))
        return await self._consumer.still_ours(record.sequence)

    async def _once(self, event: Event, record: Record, *, attempt: int) -> bool:
        """One try. True when the event is finished: handled, or given up and in the dead letters."""
        async with self._slots:
            try:
                await self._call(event)
            except Exception as error:  # noqa: BLE001  # the handler is the user's: whatever it raises is theirs to see
                if attempt < self._registration.retries:
                    logger.warning(
                        "handler %s failed on %s (revision %d), try %d: %s: %s",
                        self._registration.name, event.key, event.revision, attempt + 1, type(error).__name__, error,
                    )  # fmt: skip
                    return False
                await self._give_up(event, record, error, attempt + 1)
        self._consumer.done(record.sequence)
        return True

    async def _call(self, event: Event) -> None:
        token = execution.current.set(self._execution(event))
        try:
            function = self._registration.function
            async with asyncio.timeout(self._registration.timeout):
                if self._registration.is_async:
                    await function(event)
                else:
                    outcome = await asyncio.to_thread(function, event)
                    if isinstance(outcome, Awaitable):
                        await outcome
        finally:
            execution.current.reset(token)

    def _execution(self, event: Event) -> Execution:
        """A handler runs in the event's workflow and session, so that what it reads is what the writer saw."""
        writer = event.writer
        workflow = event.scope_id if event.scope == "workflow" else writer.workflow_id
        session = event.scope_id if event.scope == "session" else writer.session_id
        started = execution.root(
            self._agent, self._actor_id, workflow_id=workflow, session_id=session, cause=event.id, trace=writer.trace
        )
        started.seen.saw(event.revision)
        return replace(started, workflow_id=workflow, parent_id=writer.execution_id)

    async def _give_up(self, event: Event, record: Record, error: Exception, tries: int) -> None:
        """Put the event into the dead letters, with what went wrong; insists until it is stored."""
        name = self._registration.name
        logger.error(
            "handler %s gives up on %s (revision %d) after %d tries: %s: %s",
            name, event.key, event.revision, tries, type(error).__name__, error,
        )  # fmt: skip
        letter = {
            "agent": self._agent,
            "handler": name,
            "key": event.key,
            "scope": event.scope,
            "scope_id": event.scope_id,
            "revision": event.revision,
            "event_id": event.id,
            "tries": tries,
            "error": {
                "type": type(error).__name__,
                "message": str(error),
                "traceback": "".join(traceback.format_exception(error)),
            },
        }
        subject = f"{self._fabric.topology.namespace}.deadletters.{self._agent}.{name}"
        headers = {EVENT_ID: f"{event.id}-{self._agent}-{name}-{record.sequence}"}
        delay = _FIRST_RETRY
        while True:
            try:
                await self._fabric.log.append(subject, orjson.dumps(letter), headers)
                return
            except AgentFieldError as failure:
                logger.warning("handler %s: storing the dead letter: %s; trying again", name, failure)
                await asyncio.sleep(delay)
                delay = min(_LONGEST_RETRY, delay * 2)


async def _kept_up(run: HandlerRun) -> None:
    """Run a handler for as long as its agent lives: whatever ends it but the agent's own end is reported and mended."""
    while True:
        try:
            await run.run()
        except Exception as error:  # a loop that ended in silence would be worse than any error
            if isinstance(error, BaseExceptionGroup) and error.split(ClosedError)[1] is None:
                return
            logger.exception("the loop of handler %s broke off; it starts again", run.name)
        await asyncio.sleep(_FIRST_RETRY)


class Subscriptions:
    """Every handler of an agent in this process, started and stopped together."""

    def __init__(self, fabric: Fabric, registrations: Sequence[Registration], *, agent: str, actor_id: str) -> None:
        self._runs = [HandlerRun(fabric, item, agent=agent, actor_id=actor_id) for item in registrations]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Create the durable consumers, then begin to handle. On return no later event is missed.

        Raises :class:`UnavailableError` when the server does not answer; nothing runs then.
        """
        for run in self._runs:
            await run.prepare()
        self._tasks = [asyncio.create_task(_kept_up(run), name=f"handler {run.name}") for run in self._runs]

    async def drain(self, grace: float = 30.0) -> None:
        """Let handlers finish what they hold (at most ``grace`` seconds), acknowledge, and hand over. Idempotent."""
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await asyncio.gather(*(run.drain() for run in self._runs))
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                logger.error("a handler's loop ended with %r", outcome)
        for run in self._runs:
            await run.leave()
