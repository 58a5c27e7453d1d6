"""Handlers as they run: in order per key, each event once per agent, durably, or once in every instance, live.

Owns: the path of an event from the consumer to its handling: previous data, lanes that keep one key in order while
others go on, retries with backoff. Must not know: the wire, nor how a consumer comes by its events. Invariants: an
event is reported done only when it is finished; the events of one key are handled one after the other, in the order of
the log; values are in memory only while their event is being handled.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress

from agentfield.codec import Record
from agentfield.errors import AgentFieldError, DecodeError, InvalidInputError
from agentfield.fabric.consumers.consumer import PinnedConsumer
from agentfield.fabric.consumers.consuming import Activated, Consumer, ConsumerSpec, Received, Shortened
from agentfield.fabric.consumers.durables import described, durable_name
from agentfield.fabric.consumers.live import LiveConsumer
from agentfield.fabric.fabric import Fabric
from agentfield.header import EVENT_HEADER
from agentfield.memory.encrypting import known
from agentfield.memory.history import matching
from agentfield.memory.previous import PreviousTable
from agentfield.memory.reacting.handling import Handling, Taken
from agentfield.memory.reacting.insisting import insist, pause_before
from agentfield.memory.reacting.redelivering import recall
from agentfield.memory.reacting.registration import Registration
from agentfield.memory.reacting.superseding import SupersededError, stand_aside
from agentfield.memory.state import is_live
from agentfield.pattern import subsumes
from agentfield.settings import DEFAULT_MAX_DEPTH

logger = logging.getLogger("agentfield.handlers")

_IN_A_ROW = 32
"""Events after which whatever else the loop has to do gets its turn: handlers that never wait would starve even the
connection, and the server would idle until they have handled all that is here."""
_REMEMBERED = 10_000
"""Keys of which it is remembered whether the patterns match them."""
_LANES = 500
"""Keys that may wait for a retry at once; with more, taking events pauses."""


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
        self._filters = fabric.subjects.filters(registration.patterns, registration.scopes)
        self._requests = fabric.deadletters.requests(agent, registration.name)
        self._handling = Handling(
            fabric, registration, agent=agent, actor_id=actor_id, max_depth=max_depth, shared=self.shared,
            is_ending=self._is_ending,
        )  # fmt: skip
        self._spec = ConsumerSpec(
            name=durable_name(agent, registration.name),
            filters=(*self._filters, self._requests) if self.shared else self._filters,
            start=registration.start,
            description=f"on_change({', '.join(str(p) for p in registration.patterns)}) of agent {agent}",
            metadata=described(agent, registration.name, [str(pattern) for pattern in registration.patterns]),
        )
        kind = PinnedConsumer if self.shared else LiveConsumer
        self._consumer: Consumer = kind(fabric.log, self._spec)
        self._ending = asyncio.Event()
        self._broken_off = False
        self._consuming: asyncio.Task[None] | None = None
        self._begin()

    def _begin(self) -> None:
        """Nothing taken, nothing known."""
        self._table = PreviousTable(self._fabric.log, self._filters)
        self._lanes: dict[str, deque[Taken]] = {}
        self._slots = asyncio.Semaphore(self._registration.concurrency)
        self._lane_room = asyncio.Semaphore(_LANES)
        self._failures: dict[int, str] = {}
        self._meant: dict[str, bool] = {}

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
            name = self._registration.name
            self._consuming = tasks.create_task(self._consumer.run(), name=f"consumer of {name}")
            await self._take(tasks)

    async def drain(self) -> None:
        """Begin nothing more, and return when every try that has begun is over; what waits is for whoever is next."""
        self._ending.set()
        await self._consumer.drain()

    def break_off(self) -> None:
        """Before ``run`` is cancelled: it ends also if the handler catches that, when the handler has returned."""
        self._broken_off = True

    async def leave(self) -> None:
        """After ``run`` has ended: acknowledge, and let a standby take over at once."""
        await self._consumer.leave()

    def _is_ending(self) -> bool:
        """Whether a cancellation is meant for all of this; otherwise, it is the handler's function that made it."""
        consuming = self._consuming
        return self._broken_off or consuming is None or consuming.done() or consuming.cancelling() > 0

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        concurrent = self._registration.concurrency > 1
        count = 0
        while True:
            if self._broken_off or (self._consuming is not None and self._consuming.done()):
                # The handler has caught the cancellation that goes with it.
                raise asyncio.CancelledError
            count += 1
            if count % _IN_A_ROW == 0:
                await asyncio.sleep(0)
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

    def _is_meant(self, record: Record) -> bool:
        """Whether the record is an event of a key that the patterns match."""
        meant = self._meant.get(record.subject)
        if meant is None or EVENT_HEADER not in record.headers:
            meant = matching(self._fabric, self._registration.patterns, record)
            if EVENT_HEADER in record.headers:
                if len(self._meant) >= _REMEMBERED:
                    self._meant.clear()
                self._meant[record.subject] = meant
        return meant

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
        await insist(self.name, lambda: self._table.fill(floor), unless=())

    async def _taken(self, item: Received) -> Taken | None:
        """The record with what its key held before, or None if it is not for this handler."""
        record = item.record
        try:
            if not self._is_meant(record):
                return None
            if item.present:
                record = await insist(self.name, lambda: known(self._fabric, item.record))
                return Taken(record, item.previous) if is_live(record, self._fabric.log.now()) else None
            if self._table.has(record):
                return Taken(record, self._table.at_hand(record))
            return Taken(record, await insist(self.name, lambda: self._table.of(item.record)))
        except (DecodeError, InvalidInputError) as error:
            logger.error("handler %s skips a foreign message: %s", self.name, error)
            return None

    async def _recalled(self, request: Record) -> Taken | None:
        """The event of a dead letter that somebody wants handled again, or None if it cannot be, or has been."""
        try:
            found = await insist(self.name, lambda: recall(self._fabric, request))
        except (DecodeError, InvalidInputError) as error:
            logger.error("handler %s cannot replay a dead letter: %s", self.name, error)
            return None
        if found is None:
            return None
        return Taken(found.record, found.previous, sequence=request.sequence, letter=found.letter)

    async def _open_lane(self, tasks: asyncio.TaskGroup, taken: Taken, *, attempt: int) -> None:
        """Go on with this key in a task of its own, so that other keys need not wait for it."""
        await self._lane_room.acquire()
        subject = taken.record.subject
        self._lanes[subject] = deque()
        tasks.create_task(self._lane(taken, attempt), name=f"handler {self._registration.name} {subject}")

    async def _lane(self, taken: Taken, attempt: int) -> None:
        subject = taken.record.subject
        try:
            lane = self._lanes[subject]
            while True:
                while await self._still_ours(taken, attempt) and not await self._once(taken, attempt=attempt):
                    attempt += 1
                self._failures.pop(taken.sequence, None)
                while lane and self._ending.is_set():
                    self._consumer.put_back(lane.popleft().sequence)
                if not lane:
                    return
                taken, attempt = lane.popleft(), 0
        finally:
            del self._lanes[subject]
            self._lane_room.release()

    async def _still_ours(self, taken: Taken, attempt: int) -> bool:
        if attempt:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_before(attempt)):
                    await self._ending.wait()
        return await self._consumer.still_ours(taken.sequence)

    async def _once(self, taken: Taken, *, attempt: int) -> bool:
        """One try. True when nothing is left to do: it is finished, or another instance's now or soon."""
        async with self._slots:
            if self._ending.is_set():
                self._consumer.put_back(taken.sequence)
                return True
            event = taken.event or await self._handling.event(taken)
            if event is not None:
                # It may have taken long to come this far.
                if not self._consumer.surely_ours(taken.sequence) and not await self._consumer.still_ours(
                    taken.sequence
                ):
                    return True
                failure = await self._handling.once(event, taken, attempt)
                if failure is not None:
                    self._failures[taken.sequence] = failure
                    return False
        self._consumer.done(taken.sequence)
        return True

    async def _report_gap(self, gap: Shortened) -> None:
        await self._handling.report_gap(gap)
        try:
            await self._consumer.reported(gap)
        except AgentFieldError as failure:
            logger.warning("handler %s: %s; it may report the same again", self.name, failure)
