"""Rehearsing: chosen handlers, run once more on a part of the past, and what they write compared with the record.

Owns: which events a handler is given, at which place of the log it is run, and which recorded writes are its own. Must
not know: agents, how a stage is brought to a place, or how a difference looks. Invariants: a handler finds memory as it
was recorded, whatever other runs have written before it: each run is judged alone; nothing is ever written where the
record is.

When a handler ran is not recorded, only what it wrote. So it is run just before the place where its first write because
of the event is recorded; if it wrote nothing, just after the event.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple

from agentfield.codec import Record, decode_outline
from agentfield.effects import Effects
from agentfield.errors import DecodeError
from agentfield.event import Event, ReplayedFrom, Writer
from agentfield.execution import Execution
from agentfield.fabric.fabric import Fabric
from agentfield.memory.causes import handler_execution
from agentfield.memory.history import Slice, matching, records_between
from agentfield.memory.moment import Pin
from agentfield.memory.reacting.calling import call
from agentfield.memory.reacting.registration import Registration
from agentfield.memory.resolving import Resolver
from agentfield.pattern import Pattern, subsumes
from agentfield.replay.comparing import Compared, compare
from agentfield.replay.excerpt import Excerpt
from agentfield.replay.pacing import Pace
from agentfield.replay.staging import EVERYTHING, EVERYWHERE, Stage
from agentfield.settings import DEFAULT_MAX_DEPTH


class Chosen(NamedTuple):
    """A handler that is to be run."""

    agent: str
    actor_id: str
    registration: Registration

    @property
    def name(self) -> str:
        """As people name it."""
        return f"{self.agent}.{self.registration.name}"


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one handler and one event."""

    handler: str
    """``agent.handler``"""
    event: Event
    """The event, as recorded."""
    heard: bool
    """Whether the handler, as it is now, hears the event at all."""
    error: BaseException | None
    """What it raised."""
    writes: tuple[Compared, ...]

    @property
    def differs(self) -> bool:
        """Whether it does something else than it did."""
        return self.error is not None or any(write.differs for write in self.writes)


class _Due(NamedTuple):
    """A run that waits for its place."""

    chosen: Chosen
    record: Record
    previous: Record | None
    writes: tuple[int, ...]


class _Ran(NamedTuple):
    """A run that is over, and waits for all that is recorded of it to come by."""

    due: _Due
    event: Event
    heard: bool
    error: BaseException | None
    made: Sequence[Event]


class Rehearsing:
    """A rehearsal of handlers ``on`` a stage. ``look``, then ``load``, then go through ``runs``.

    ``known``: all the handlers that their agents have, by ``agent.handler``.
    """

    def __init__(
        self,
        source: Fabric,
        on: Fabric,
        excerpt: Excerpt,
        chosen: Sequence[Chosen],
        *,
        known: Iterable[str],
        ignored: Sequence[Pattern],
        pace: Pace,
        max_depth: int = DEFAULT_MAX_DEPTH,
    ) -> None:
        self._source = source
        self._there = on
        self._excerpt = excerpt
        self._chosen = chosen
        self._known = frozenset(known)
        self._agents = frozenset(name.partition(".")[0] for name in self._known)
        self._ignored = ignored
        self._pace = pace
        self._max_depth = max_depth
        self._stage = Stage(source, on)
        self._filters = {
            each.name: source.subjects.filters(each.registration.patterns, each.registration.scopes) for each in chosen
        }
        self._meant = source.subjects.filters(excerpt.patterns, excerpt.scopes)
        self._recorded: dict[tuple[str, int], list[int]] = {}
        self.last = excerpt.part.stop
        """The last revision that is gone through: where what the handlers wrote because of the part ends."""
        self.unknown: Counter[str] = Counter()
        """Handlers of the same agents that are not in the code any more: how many writes of theirs are recorded."""

    async def look(self) -> AsyncIterator[int]:
        """Find what the handlers have written because of the part, wherever in the log; gives how far it is."""
        part = self._excerpt.part
        end = int((await self._source.log.state())["last_seq"])
        names = {each.name for each in self._chosen}
        async with aclosing(self._all(Slice(part.start, end))) as records:
            async for record, _ in records:
                yield record.sequence
                try:
                    writer = decode_outline(record, self._source.subjects).writer
                except DecodeError:
                    continue
                if writer.cause_revision is None or not part.start <= writer.cause_revision <= part.stop:
                    continue
                handler = _handler(writer)
                if writer.agent in self._agents and not writer.path and handler not in self._known:
                    self.unknown[handler] += 1
                if handler in names:
                    self._recorded.setdefault((handler, writer.cause_revision), []).append(record.sequence)
                    self.last = max(self.last, record.sequence)

    async def load(self) -> AsyncIterator[int]:
        """Set the stage as it was before the part; gives how many keys that is so far."""
        part = self._excerpt.part
        before = max(0, min(part.start - 1, part.stop))  # a part that the log has not come to is empty
        async for count in self._stage.load(await Pin(before, "since").instant(self._source)):
            yield count

    async def runs(self, reached: Callable[[int], None]) -> AsyncIterator[Run]:
        """Go through the part, and give what came of every event and handler, as soon as all of it has come by.

        ``reached`` hears how far it is.
        """
        waiting: dict[int, list[_Due]] = {}
        ran: dict[int, list[_Ran]] = {}
        written: dict[int, Event | None] = {}
        resolver = Resolver(self._source)
        wanted = True
        async with aclosing(self._all(Slice(self._excerpt.part.start, self.last))) as records:
            async for record, previous in records:
                here = record.sequence
                if here in written:
                    written[here] = await resolver.event(record)
                for each in ran.pop(here, ()):
                    yield self._compared(each, written)
                done = [await self._run(due, record) for due in waiting.pop(here, ())]
                now = self._due(record, previous) if wanted and self._is_meant(record) else []
                if now:
                    wanted = await self._pace.turn(record, previous)
                    now = now if wanted else []
                await self._stage.add(record, wanted=bool(now))
                for due in now:
                    written.update(dict.fromkeys(due.writes))
                    if due.writes and self._hears(due.chosen, record):
                        waiting.setdefault(due.writes[0], []).append(due)
                    else:
                        done.append(await self._run(due, record))
                for each in done:
                    last = max(each.due.writes, default=here)
                    if last > here:
                        ran.setdefault(last, []).append(each)
                    else:
                        yield self._compared(each, written)
                reached(here)
                if not (wanted or waiting or ran):
                    return

    def _all(self, part: Slice) -> AsyncGenerator[tuple[Record, Record | None], None]:
        return records_between(self._source, EVERYTHING, EVERYWHERE, part)

    def _is_meant(self, record: Record) -> bool:
        """Whether an event belongs to the part that the handlers are to be run on."""
        excerpt = self._excerpt
        if record.sequence > excerpt.part.stop or not any(subsumes(each, record.subject) for each in self._meant):
            return False
        if not matching(self._source, excerpt.patterns, record):
            return False
        writer = decode_outline(record, self._source.subjects).writer
        if writer.depth >= self._max_depth:
            return False  # it starts no handler: too many have started one another
        return excerpt.by is None or excerpt.by(writer)

    def _hears(self, chosen: Chosen, record: Record) -> bool:
        return any(subsumes(each, record.subject) for each in self._filters[chosen.name]) and matching(
            self._source, chosen.registration.patterns, record
        )

    def _due(self, record: Record, previous: Record | None) -> list[_Due]:
        found = []
        for chosen in self._chosen:
            writes = tuple(self._recorded.pop((chosen.name, record.sequence), ()))
            if writes or self._hears(chosen, record):
                found.append(_Due(chosen, record, previous, writes))
        return found

    async def _run(self, due: _Due, at: Record) -> _Ran:
        """Run a handler on the stage as it is when it comes to a record."""
        event = await Resolver(self._source).event(due.record, due.previous)
        made: list[Event] = []
        error: BaseException | None = None
        heard = self._hears(due.chosen, due.record)
        if heard and not event.erased:  # nobody has what it was given then
            await self._stage.stand(at.timestamp)
            error = await self._try(due, event)
            resolver = Resolver(self._there)
            made = [await resolver.event(each) for each in await self._stage.written()]
        return _Ran(due, event, heard, error, [each for each in made if each.writer.cause == event.id])

    def _compared(self, ran: _Ran, written: dict[int, Event | None]) -> Run:
        """What came of a run, once all that had been written because of its event has come by."""
        found = [written.pop(sequence) for sequence in ran.due.writes]
        before, now = (
            [each for each in events if each is not None and not self._is_ignored(each)] for events in (found, ran.made)
        )
        if ran.heard and ran.event.erased:
            writes = tuple(Compared("erased", each, None) for each in before)
            return Run(ran.due.chosen.name, ran.event, ran.heard, ran.error, writes)
        ran_in = handler_execution(ran.event, "", agent="", actor_id=None, effects=None).workflow_id
        writes = tuple(compare(before, now, workflow_id=ran_in))
        return Run(ran.due.chosen.name, ran.event, ran.heard, ran.error, writes)

    def _is_ignored(self, event: Event) -> bool:
        return any(pattern.matches(event.key) for pattern in self._ignored)

    async def _try(self, due: _Due, recorded: Event) -> BaseException | None:
        """One run; what it raised, if anything."""
        chosen, registration = due.chosen, due.chosen.registration
        try:
            event = await self._staged(due, recorded)
            effects = Effects(
                agent=chosen.agent,
                handler=registration.name,
                event_id=event.id,
                revision=event.revision,
                subject=self._there.subjects.memory(*self._source.subjects.parse(due.record.subject)),
            )
            here = handler_execution(
                event, registration.name, agent=chosen.agent, actor_id=chosen.actor_id, effects=effects
            )
            # In a task of its own: what it leaves in the context is its own, too.
            return await asyncio.create_task(_outcome(registration, event, here), name=f"rehearsal of {chosen.name}")
        except DecodeError as error:
            return error

    async def _staged(self, due: _Due, recorded: Event) -> Event:
        """The event as it was, but for its revisions, which are the stage's, as those of all that can be read there.

        Raises :class:`DecodeError` if it does not fit the schema that its key has by now.
        """
        event = await Resolver(self._source, due.chosen.registration.schemas).event(due.record, due.previous)
        revision = self._stage.revision(due.record.sequence)
        subject = self._there.subjects.memory(*self._source.subjects.parse(due.record.subject))
        before = await self._there.log.as_of([subject], revision - 1) if due.previous is not None else None
        return event.model_copy(
            update={
                "revision": revision,
                "previous_revision": before[0].sequence if before else None,
                "replayed_from": ReplayedFrom(
                    namespace=self._source.topology.namespace,
                    revision=recorded.revision,
                    timestamp=recorded.timestamp,
                    ttl=recorded.ttl,
                ),
            }
        )


async def _outcome(registration: Registration, event: Event, here: Execution) -> BaseException | None:
    """What a handler raises, if anything: whatever that is, also what would end the process if it left its task."""
    try:
        await call(registration, event, here)
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, GeneratorExit) or (
            isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling()
        ):
            raise
        return error
    return None


def _handler(writer: Writer) -> str:
    """The handler that a write came from, itself or by the calls that it made."""
    if writer.path:
        return writer.path[0].partition("/")[0]
    return f"{writer.agent}.{writer.function}"
