"""Handlers as they run: in order per key, each event once per agent, durably, or once in every instance, live.

Owns: the path of an event from the consumer to the user's function: previous data, the execution it runs in, lanes that
keep one key in order while others go on, retries with backoff, the dead letters. Must not know: the wire, nor how a
consumer comes by its events. Invariants: an event is reported done only when its handler returned or it lies in the
dead letters; the events of one key are handled one after the other, in the order of the log; values are in memory only
while their event is being handled.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from agentfield.codec import Record, decode_outline
from agentfield.effects import Effects
from agentfield.errors import AgentFieldError, ClosedError, DecodeError, InvalidInputError, ResyncRequired
from agentfield.event import Event
from agentfield.fabric.consumer import PinnedConsumer
from agentfield.fabric.consuming import Activated, Consumer, ConsumerSpec, Received, Shortened
from agentfield.fabric.durables import described, durable_name, handlers_of
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.live import LiveConsumer
from agentfield.memory.calling import call
from agentfield.memory.causes import handler_execution
from agentfield.memory.encrypting import known
from agentfield.memory.history import matching
from agentfield.memory.letters import Letter, letter, letter_of_gap, said
from agentfield.memory.loops import LoopDetected, LoopGuard
from agentfield.memory.previous import PreviousTable
from agentfield.memory.registration import Registration
from agentfield.memory.replaying import recall, settle
from agentfield.memory.resolving import Resolver
from agentfield.memory.state import is_live
from agentfield.memory.superseding import SupersededError, stand_aside
from agentfield.pattern import subsumes
from agentfield.settings import DEFAULT_MAX_DEPTH

__all__ = ["HandlerRun", "Registration", "Subscriptions"]

logger = logging.getLogger("agentfield.handlers")

_FIRST_RETRY = 0.2
_LONGEST_RETRY = 30.0
_LOGGED = 500
"""Characters of an exception's text that the log of the program shows."""
_LOOK = 2.0
"""Seconds for a look at what is on the server; a start does not wait longer for a mere warning."""
_LANES = 500
"""Keys that may wait for a retry at once; with more, taking events pauses."""


class _Taken:
    """An event that waits to be handled, and, once it is its turn, as the handler gets it."""

    __slots__ = ("effects", "event", "letter", "previous", "record", "sequence")

    def __init__(
        self, record: Record, previous: Record | None, *, sequence: int | None = None, letter: Letter | None = None
    ) -> None:
        self.record = record
        self.previous = previous
        self.sequence = record.sequence if sequence is None else sequence
        """What the consumer knows it by: the event's own sequence, or that of the request to handle it again."""
        self.letter = letter
        """The dead letter that is being replayed."""
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
        self._filters = fabric.subjects.filters(registration.patterns, registration.scopes)
        self._requests = fabric.deadletters.requests(agent, registration.name)
        self._resolver = Resolver(fabric, registration.schemas)
        self._loops = LoopGuard(fabric, registration.name, limit=max_depth, clock=fabric.loop.time)
        self._spec = ConsumerSpec(
            name=durable_name(agent, registration.name),
            filters=(*self._filters, self._requests) if self.shared else self._filters,
            start=registration.start,
            description=f"on_change({', '.join(str(p) for p in registration.patterns)}) of agent {agent}",
            metadata=described(agent, registration.name, [str(pattern) for pattern in registration.patterns]),
        )
        kind = PinnedConsumer if self.shared else LiveConsumer
        self._consumer: Consumer = kind(fabric.log, self._spec)
        self._begin()

    def _begin(self) -> None:
        """Nothing taken, nothing known."""
        self._table = PreviousTable(self._fabric.log, self._filters)
        self._lanes: dict[str, deque[_Taken]] = {}
        self._slots = asyncio.Semaphore(self._registration.concurrency)
        self._lane_room = asyncio.Semaphore(_LANES)
        self._failures: dict[int, str] = {}

    @property
    def shared(self) -> bool:
        """Whether the instances of the agent share the events, so that what one has handled is handled for all."""
        return self._registration.delivery == "agent"

    @property
    def fabric(self) -> Fabric:
        """Where it gets its events."""
        return self._fabric

    @property
    def floor(self) -> int:
        """Everything up to this sequence is known to have been handled; where it is shared, by whichever instance."""
        return self._consumer.floor

    def hears(self, record: Record) -> bool:
        """Whether an event is for this handler. Raises :class:`InvalidInputError` for one that is not agentfield's."""
        return any(subsumes(each, record.subject) for each in self._filters) and matching(
            self._fabric, self._registration.patterns, record
        )

    def standing(self, sequence: int) -> str | None:
        """How far an event has come, in words; None once it is known to be handled, or given up.

        Where the events are shared, by any instance.
        """
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
        self._consumer = consumer.successor()
        self._begin()
        await consumer.leave()

    async def prepare(self) -> None:
        """Fix where it begins: from here on no event is missed."""
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
            if isinstance(item, Shortened):
                await self._report_gap(item)
                continue
            record = item.record
            if record.subject == self._requests:
                taken = await self._recalled(record) if not item.handled else None
            else:
                taken = await self._taken(item) if not item.handled else None
            if record.subject != self._requests and not item.present:
                self._table.advance(record)
            if taken is None:
                if not item.handled and not self._is_declared(record):
                    await self._give_way(record)
                self._consumer.done(record.sequence)
                continue
            lane = self._lanes.get(taken.record.subject)
            if lane is not None:
                lane.append(taken)
            elif concurrent or self._slots.locked():
                await self._open_lane(tasks, taken, attempt=0)
            elif not await self._once(taken, attempt=0):
                await self._open_lane(tasks, taken, attempt=1)

    def _is_declared(self, record: Record) -> bool:
        """Whether this version of the handler asked for events like this one, matching or not."""
        return record.subject == self._requests or any(subsumes(each, record.subject) for each in self._filters)

    async def _give_way(self, record: Record) -> None:
        """Finish what is held; the event itself is for the instance that asked for it. Raises SupersededError."""
        self._consumer.put_back(record.sequence)
        await self._consumer.drain()
        raise SupersededError

    async def stand_aside(self) -> None:
        """After it gave way: return when it is this version's turn again."""
        fabric = self._fabric
        await stand_aside(fabric.connection, fabric.log.stream, self._agent, self.name, self._spec.filters)
        await self.prepare()

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

    async def _taken(self, item: Received) -> _Taken | None:
        """The record with what its key held before, or None if it is not for this handler."""
        record, delay = item.record, _FIRST_RETRY
        while True:
            try:
                if not matching(self._fabric, self._registration.patterns, record):
                    return None
                if item.present:
                    record = await known(self._fabric, record)
                    return _Taken(record, item.previous) if is_live(record, self._fabric.log.now()) else None
                return _Taken(record, await self._table.of(record))
            except (DecodeError, InvalidInputError) as error:
                logger.error("handler %s skips a foreign message: %s", self._registration.name, error)
                return None
            except AgentFieldError as error:
                logger.warning("handler %s: %s; trying again", self._registration.name, error)
                await asyncio.sleep(delay)
                delay = min(_LONGEST_RETRY, delay * 2)

    async def _recalled(self, request: Record) -> _Taken | None:
        """The event of a dead letter that somebody wants handled again, or None if it cannot be, or has been."""
        delay = _FIRST_RETRY
        while True:
            try:
                found = await recall(self._fabric, request)
                if found is None:
                    return None
                return _Taken(found.record, found.previous, sequence=request.sequence, letter=found.letter)
            except (DecodeError, InvalidInputError) as error:
                logger.error("handler %s cannot replay a dead letter: %s", self._registration.name, error)
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
                await self._set_aside(taken, error)
                return None
            except AgentFieldError as error:
                logger.warning("handler %s: %s; trying again", self._registration.name, error)
                await asyncio.sleep(delay)
                delay = min(_LONGEST_RETRY, delay * 2)

    async def _set_aside(self, taken: _Taken, error: AgentFieldError) -> None:
        """What is no event of agentfield's is skipped; one whose data cannot be read may be readable another day."""
        try:
            outline = decode_outline(taken.record, self._fabric.subjects)
        except DecodeError:
            logger.error("handler %s skips a foreign message: %s", self._registration.name, error)
        else:
            await self._give_up(outline, taken, error, 0)

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
                while await self._still_ours(taken, attempt) and not await self._once(taken, attempt=attempt):
                    attempt += 1
                self._failures.pop(taken.sequence, None)
                if not lane:
                    return
                taken, attempt = lane.popleft(), 0
        finally:
            del self._lanes[subject]
            self._lane_room.release()

    async def _still_ours(self, taken: _Taken, attempt: int) -> bool:
        if attempt:
            await asyncio.sleep(min(_LONGEST_RETRY, _FIRST_RETRY * 2 ** min(attempt - 1, 16)))
        return await self._consumer.still_ours(taken.sequence)

    async def _once(self, taken: _Taken, *, attempt: int) -> bool:
        """One try. True when the event is finished: handled, or given up and in the dead letters."""
        async with self._slots:
            event = taken.event or await self._event(taken)
            if event is None:
                await self._finish(taken)
                return True
            if not await self._consumer.still_ours(taken.sequence):  # it may have taken long to come this far
                return True
            # Who has a dead letter replayed knows what it was about.
            if taken.letter is None and (loop := await self._loops.loop(event, taken.record)) is not None:
                await self._give_up(event, taken, loop, attempt)
                await self._finish(taken)
                return True
            try:
                effects = self._effects(taken, event)
                here = handler_execution(event, self.name, agent=self._agent, actor_id=self._actor_id, effects=effects)
                await call(self._registration, event, here)
            # The handler is the user's: whatever it raises is theirs to see, even a cancellation of its own making, or
            # what would end the process; that would come again in every instance that takes over.
            except BaseException as error:
                task = asyncio.current_task()
                if isinstance(error, GeneratorExit):
                    raise
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                if attempt < self._registration.retries:
                    logger.warning(
                        "handler %s failed on %s (revision %d), try %d: %s: %s",
                        self.name, event.key, event.revision, attempt + 1, type(error).__name__, said(error, _LOGGED),
                    )  # fmt: skip
                    self._failures[taken.sequence] = (
                        f"failed {attempt + 1} of {self._registration.retries + 1} tries: "
                        f"{type(error).__name__}: {said(error)}"
                    )
                    return False
                await self._give_up(event, taken, error, attempt + 1)
        await self._finish(taken)
        return True

    async def _finish(self, taken: _Taken) -> None:
        """It was handled, or lies in the dead letters."""
        if taken.letter is not None:
            await settle(self._fabric, taken.letter)
        self._consumer.done(taken.sequence)

    def _effects(self, taken: _Taken, event: Event) -> Effects | None:
        """The same for every try, so that a write which is made again is recognised.

        None where every instance handles the event: what one of them writes is no repetition of another's.
        """
        if not self.shared:
            return None
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

    async def _give_up(self, event: Event, taken: _Taken, error: BaseException, tries: int) -> None:
        """Put the event into the dead letters, with what went wrong; insists until it is stored."""
        name = self._registration.name
        if not isinstance(error, LoopDetected):  # of those there may be many, and their guard reports them
            logger.error(
                "handler %s gives up on %s (revision %d) after %s: %s: %s",
                name, event.key, event.revision, "1 try" if tries == 1 else f"{tries} tries",
                type(error).__name__, said(error, _LOGGED),
            )  # fmt: skip
        replays = 0 if taken.letter is None else taken.letter.replays + 1
        payload = letter(event, error, agent=self._agent, handler=name, tries=tries, replays=replays)
        await self._store_letter(payload, f"{event.id}-{self._agent}-{name}-{taken.sequence}")

    async def _report_gap(self, gap: Shortened) -> None:
        """Say that events are gone which this handler had still to handle, where people look for what went wrong."""
        error = ResyncRequired(requested=gap.after + 1, first_available=gap.first_available)
        logger.error(
            "handler %s: events were taken out of the log, the last of them revision %d, and this handler had come to "
            "revision %d: whatever was for it in between is lost to it; it goes on from revision %d",
            self.name, gap.first_available - 1, gap.after, gap.first_available,
        )  # fmt: skip
        payload = letter_of_gap(error, agent=self._agent, handler=self.name)
        await self._store_letter(payload, f"gap-{self._agent}-{self.name}-{gap.first_available}")
        try:
            await self._consumer.reported(gap)
        except AgentFieldError as failure:
            logger.warning("handler %s: %s; it may report the same again", self.name, failure)

    async def _store_letter(self, payload: bytes, id: str) -> None:
        delay = _FIRST_RETRY
        while True:
            try:
                await self._fabric.deadletters.store(self._agent, self.name, payload, letter_id=id)
                return
            except AgentFieldError as failure:
                logger.warning("handler %s: storing the dead letter: %s; trying again", self.name, failure)
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
            if isinstance(error, BaseExceptionGroup) and error.split(SupersededError)[1] is None:
                await run.renew()
                await _once_again(run)
                continue
            logger.exception("the loop of handler %s broke off; it starts again", run.name)
        await asyncio.sleep(_FIRST_RETRY)
        await run.renew()


async def _once_again(run: HandlerRun) -> None:
    """Wait until another version of the handler is gone, however long that takes."""
    while True:
        try:
            await run.stand_aside()
        except AgentFieldError as error:
            logger.warning("handler %s: %s; trying again", run.name, error)
        else:
            return


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
        self._fabric = fabric
        self._agent = agent
        self.runs = [
            HandlerRun(fabric, item, agent=agent, actor_id=actor_id, max_depth=max_depth) for item in registrations
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Fix where each handler begins, then begin to handle. On return no later event is missed.

        Raises :class:`UnavailableError` when the server does not answer; nothing runs then.
        """
        for run in self.runs:
            await run.prepare()
        await self._name_orphans()
        self._tasks = [asyncio.create_task(_kept_up(run), name=f"handler {run.name}") for run in self.runs]

    async def _name_orphans(self) -> None:
        """Warn of handlers that this agent once had: what they have not handled waits for somebody to decide."""
        fabric, agent = self._fabric, self._agent
        try:
            there = await handlers_of(fabric.connection, fabric.log.stream, agent, patience=_LOOK)
        except AgentFieldError as error:
            logger.debug("agent %s: %s", agent, error)
            return
        orphans = sorted(there - {run.name for run in self.runs if run.shared})
        if orphans:
            logger.warning(
                "agent %s has no handler %s any more, but what they were to handle still waits on the server: "
                "`agentfield handlers list` shows it, `agentfield handlers remove %s.%s` forgets it",
                agent, " and no handler ".join(orphans), agent, orphans[0],
            )  # fmt: skip

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
