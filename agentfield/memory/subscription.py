"""Handlers: what ``on_change`` registers, and running it durably, in order per key, once per agent.

Owns: the path of an event from the consumer to the user's function: previous data, the execution it runs in, lanes that
keep one key in order while others go on, retries with backoff, the dead letters. Must not know: the wire. Invariants:
an event is reported done only when its handler returned or it lies in the dead letters; the events of one key are
handled one after the other, in the order of the log; values are in memory only while their event is being handled.
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
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from agentfield import execution
from agentfield.codec import EVENT_ID, Record, decode_outline
from agentfield.effects import Effects
from agentfield.errors import AgentFieldError, ClosedError, DecodeError, InvalidInputError
from agentfield.event import Event
from agentfield.fabric.consumer import Activated, ConsumerSpec, PinnedConsumer
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import AnyScope
from agentfield.memory.causes import handler_execution
from agentfield.memory.history import matching
from agentfield.memory.loops import LoopDetected, LoopGuard
from agentfield.memory.previous import PreviousTable
from agentfield.memory.resolving import Resolver
from agentfield.pattern import Pattern, subsumes
from agentfield.schema import Schemas
from agentfield.settings import DEFAULT_MAX_DEPTH

logger = logging.getLogger("agentfield.handlers")

Handler = Callable[[Event], Any]
Start = Literal["new", "all"] | datetime | int

_FIRST_RETRY = 0.2
_LONGEST_RETRY = 30.0
_LONGEST_TEXT = 20_000
"""Characters of an exception's text or traceback that a dead letter holds: it must never be too large to be stored."""
_LOGGED = 500
"""Characters of it that the log of the program shows."""
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
    schemas: Schemas

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
    schemas: Schemas,
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
    if isinstance(patterns, str):
        texts = [patterns]
    elif isinstance(patterns, Sequence):
        texts = list(patterns)
    else:
        raise InvalidInputError(f"patterns={patterns!r}: a pattern, or a list of patterns")
    if not texts:
        raise InvalidInputError("on_change needs at least one pattern; '*' hears every key")
    chosen = name if name is not None else getattr(function, "__name__", None)
    if not isinstance(chosen, str) or re.fullmatch(r"[A-Za-z0-9_-]{1,64}", chosen) is None:
        raise InvalidInputError(f"handler name {chosen!r}: 1 to 64 of A-Z a-z 0-9 _ -; give another with name=…")
    if not (start in ("new", "all") if isinstance(start, str) else _is_point(start)):
        raise InvalidInputError(f"start={start!r}: 'new', 'all', an aware datetime, or a revision")
    if not _is_count(concurrency, 1) or not _is_count(retries, 0):
        raise InvalidInputError(
            f"concurrency={concurrency!r}, retries={retries!r}: whole numbers, at least 1 and at least 0"
        )
    if timeout is not None and not _is_span(timeout):
        raise InvalidInputError(f"timeout={timeout!r}: seconds, above 0, or None")
    return Registration(
        chosen,
        function,
        tuple(Pattern.parse(text) for text in texts),
        scopes,
        start,
        concurrency,
        retries,
        timeout,
        schemas,
    )


def _is_point(start: object) -> bool:
    if isinstance(start, datetime):
        return start.tzinfo is not None
    return type(start) is int and start >= 0


def _is_count(value: object, least: int) -> bool:
    return type(value) is int and value >= least


def _is_span(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


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


class _Taken:
    """An event that waits to be handled, and, once it is its turn, as the handler gets it."""

    __slots__ = ("effects", "event", "previous", "record")

    def __init__(self, record: Record, previous: Record | None) -> None:
        self.record = record
        self.previous = previous
        self.event: Event | None = None
        self.effects: Effects | None = None


class HandlerRun:
    """One handler of an agent in this process. ``prepare`` it, ``run`` it in a task of yours, ``stop`` it."""

    def __init__(
        self,
        fabric: Fabric,
        registration: Registration,
        *,
        agent: str,
        actor_id: str,
        max_depth: int = DEFAULT_MAX_DEPTH,
    ) -> None:
        self.name = registration.name
        self._fabric = fabric
        self._registration = registration
        self._agent = agent
        self._actor_id = actor_id
        self._is_async = registration.is_async
        self._filters = fabric.subjects.filters(registration.patterns, registration.scopes)
        self._resolver = Resolver(fabric, registration.schemas)
        self._loops = LoopGuard(fabric, registration.name, limit=max_depth, clock=fabric.loop.time)
        self._spec = ConsumerSpec(
            stream=fabric.log.stream,
            name=f"handler-{agent}-{registration.name}",
            filters=self._filters,
            start=deliver_policy(registration.start),
            description=f"on_change({', '.join(str(p) for p in registration.patterns)}) of agent {agent}",
            metadata={"agent": agent, "handler": registration.name},
        )
        self._begin()

    def _begin(self) -> None:
        """Nothing taken, nothing known."""
        self._table = PreviousTable(self._fabric.log, self._filters)
        self._consumer = PinnedConsumer(self._fabric.connection, self._spec)
        self._lanes: dict[str, deque[_Taken]] = {}
        self._slots = asyncio.Semaphore(self._registration.concurrency)
        self._lane_room = asyncio.Semaphore(_LANES)
        self._failures: dict[int, str] = {}

    @property
    def fabric(self) -> Fabric:
        """Where it gets its events."""
        return self._fabric

    @property
    def floor(self) -> int:
        """Everything up to this sequence is known to have been handled, by whichever instance."""
        return self._consumer.floor

    def hears(self, record: Record) -> bool:
        """Whether an event is for this handler. Raises :class:`InvalidInputError` for one that is not agentfield's."""
        return any(subsumes(each, record.subject) for each in self._filters) and matching(
            self._fabric, self._registration.patterns, record
        )

    def standing(self, sequence: int) -> str | None:
        """How far an event has come, in words; None once it is known to be handled, or given up, by any instance."""
        if self._consumer.is_handled(sequence):
            return None
        if (failure := self._failures.get(sequence)) is not None:
            return failure
        return "being handled" if self._consumer.is_begun(sequence) else "not begun"

    async def learn_floor(self) -> None:
        """Ask the server how far other instances have come. Raises :class:`UnavailableError`."""
        await self._consumer.learn_floor()

    async def renew(self) -> None:
        """After ``run`` has broken off: give up what was taken, so that it comes again, and begin anew."""
        consumer = self._consumer
        self._begin()
        await consumer.leave()

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
            taken = await self._taken(record) if not item.handled else None
            self._table.advance(record)
            if taken is None:
                self._consumer.done(record.sequence)
                continue
            lane = self._lanes.get(record.subject)
            if lane is not None:
                lane.append(taken)
            elif concurrent or self._slots.locked():
                await self._open_lane(tasks, taken, attempt=0)
            elif not await self._once(taken, attempt=0):
                await self._open_lane(tasks, taken, attempt=1)

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

    async def _taken(self, record: Record) -> _Taken | None:
        """The record with what its key held before, or None if it is not for this handler."""
        delay = _FIRST_RETRY
        while True:
            try:
                if not matching(self._fabric, self._registration.patterns, record):
                    return None
                return _Taken(record, await self._table.of(record))
            except (DecodeError, InvalidInputError) as error:
                logger.error("handler %s skips a foreign message: %s", self._registration.name, error)
                return None
            except AgentFieldError as error:
                logger.warning("handler %s: %s; trying again", self._registration.name, error)
                await asyncio.sleep(delay)
                delay = min(_LONGEST_RETRY, delay * 2)

    async def _event(self, taken: _Taken) -> Event | None:
        """The event to handle, or None if it cannot be; it lies in the dead letters then, if it is agentfield's."""
        delay = _FIRST_RETRY
        while True:
            try:
                taken.event = await self._resolver.event(taken.record, taken.previous)
                return taken.event
            except (DecodeError, InvalidInputError) as error:
                await self._set_aside(taken.record, error)
                return None
            except AgentFieldError as error:
                logger.warning("handler %s: %s; trying again", self._registration.name, error)
                await asyncio.sleep(delay)
                delay = min(_LONGEST_RETRY, delay * 2)

    async def _set_aside(self, record: Record, error: AgentFieldError) -> None:
        """What is no event of agentfield's is skipped; one whose data cannot be read may be readable another day."""
        try:
            outline = decode_outline(record, self._fabric.subjects)
        except DecodeError:
            logger.error("handler %s skips a foreign message: %s", self._registration.name, error)
        else:
            await self._give_up(outline, record, error, 0)

    async def _open_lane(self, tasks: asyncio.TaskGroup, taken: _Taken, *, attempt: int) -> None:
        """Go on with this key in a task of its own, so that other keys need not wait for it."""
        await self._lane_room.acquire()
        subject = taken.record.subject
        self._lanes[subject] = deque()
        tasks.create_task(self._lane(taken, attempt), name=f"handler {self._registration.name} {subject}")

    async def _lane(self, taken: _Taken, attempt: int) -> None:
        subject = taken.record.subject
        try:
            lane = self._lanes[subject]
            while True:
                while await self._still_ours(taken.record, attempt) and not await self._once(taken, attempt=attempt):
                    attempt += 1
                self._failures.pop(taken.record.sequence, None)
                if not lane:
                    return
                taken, attempt = lane.popleft(), 0
        finally:
            del self._lanes[subject]
            self._lane_room.release()

    async def _still_ours(self, record: Record, attempt: int) -> bool:
        if attempt:
            await asyncio.sleep(min(_LONGEST_RETRY, _FIRST_RETRY * 2 ** (attempt - 1)))
        return await self._consumer.still_ours(record.sequence)

    async def _once(self, taken: _Taken, *, attempt: int) -> bool:
        """One try. True when the event is finished: handled, or given up and in the dead letters."""
        record = taken.record
        async with self._slots:
            event = taken.event or await self._event(taken)
            if event is None:
                self._consumer.done(record.sequence)
                return True
            if not await self._consumer.still_ours(record.sequence):  # it may have taken long to come this far
                return True
            if (loop := await self._loops.loop(event, record)) is not None:
                await self._give_up(event, record, loop, attempt)
                self._consumer.done(record.sequence)
                return True
            try:
                await self._call(event, self._effects(taken, event))
            # The handler is the user's: whatever it raises is theirs to see, even a cancellation of its own making.
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                if attempt < self._registration.retries:
                    logger.warning(
                        "handler %s failed on %s (revision %d), try %d: %s: %s",
                        self.name, event.key, event.revision, attempt + 1, type(error).__name__, _said(error, _LOGGED),
                    )  # fmt: skip
                    self._failures[record.sequence] = (
                        f"failed {attempt + 1} of {self._registration.retries + 1} tries: "
                        f"{type(error).__name__}: {_said(error)}"
                    )
                    return False
                await self._give_up(event, record, error, attempt + 1)
        self._consumer.done(record.sequence)
        return True

    def _effects(self, taken: _Taken, event: Event) -> Effects:
        """The same for every try, so that a write which is made again is recognised."""
        if taken.effects is None:
            taken.effects = Effects(
                agent=self._agent,
                handler=self.name,
                event_id=event.id,
                revision=event.revision,
                subject=taken.record.subject,
            )
        else:
            taken.effects.again()
        return taken.effects

    async def _call(self, event: Event, effects: Effects) -> None:
        here = handler_execution(event, self.name, agent=self._agent, actor_id=self._actor_id, effects=effects)
        token = execution.current.set(here)
        try:
            if self._registration.timeout is None:
                await self._run_handler(event)
            else:
                async with asyncio.timeout(self._registration.timeout):
                    await self._run_handler(event)
            await effects.restore()
        finally:
            execution.current.reset(token)

    async def _run_handler(self, event: Event) -> None:
        function = self._registration.function
        if self._is_async:
            await function(event)
            return
        outcome = await asyncio.to_thread(function, event)
        if isinstance(outcome, Awaitable):
            await outcome

    async def _give_up(self, event: Event, record: Record, error: BaseException, tries: int) -> None:
        """Put the event into the dead letters, with what went wrong; insists until it is stored."""
        name = self._registration.name
        if not isinstance(error, LoopDetected):  # of those there may be many, and their guard reports them
            logger.error(
                "handler %s gives up on %s (revision %d) after %d tries: %s: %s",
                name, event.key, event.revision, tries, type(error).__name__, _said(error, _LOGGED),
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
                "message": _said(error),
                "traceback": _storable("".join(traceback.format_exception(error))),
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


def _said(error: BaseException, most: int = _LONGEST_TEXT) -> str:
    """What an exception says, whatever it is."""
    try:
        return _storable(str(error), most)
    except Exception:  # noqa: BLE001  # its own __str__ fails
        return f"({type(error).__name__} cannot say what it is about)"


def _storable(text: str, most: int = _LONGEST_TEXT) -> str:
    """The text as a dead letter can hold it: valid Unicode, and without its middle if it is too long."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


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
        await run.renew()


class Subscriptions:
    """Every handler of an agent in this process, started and stopped together."""

    def __init__(
        self,
        fabric: Fabric,
        registrations: Sequence[Registration],
        *,
        agent: str,
        actor_id: str,
        max_depth: int = DEFAULT_MAX_DEPTH,
    ) -> None:
        self.runs = [
            HandlerRun(fabric, item, agent=agent, actor_id=actor_id, max_depth=max_depth) for item in registrations
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Create the durable consumers, then begin to handle. On return no later event is missed.

        Raises :class:`UnavailableError` when the server does not answer; nothing runs then.
        """
        for run in self.runs:
            await run.prepare()
        self._tasks = [asyncio.create_task(_kept_up(run), name=f"handler {run.name}") for run in self.runs]

    async def drain(self, grace: float = 30.0) -> None:
        """Let handlers finish what they hold (at most ``grace`` seconds), acknowledge, and hand over. Idempotent."""
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await asyncio.gather(*(run.drain() for run in self.runs))
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                logger.error("a handler's loop ended with %r", outcome)
        for run in self.runs:
            await run.leave()
