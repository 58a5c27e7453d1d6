"""Handling one event: the execution it runs in, what a failure comes to, and the dead letters.

Owns: one try of the user's function on one event, from the record to its outcome. Must not know: where the event comes
from, nor what is tried next. Invariants: an event is finished only when its handler returned or it lies in the dead
letters; whatever the function raises ends no more than its try.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from agentfield.codec import Record, decode_outline
from agentfield.effects import Effects
from agentfield.errors import AgentFieldError, DecodeError, InvalidInputError, ResyncRequired
from agentfield.event import Event
from agentfield.fabric.consumers.consuming import Shortened
from agentfield.fabric.fabric import Fabric
from agentfield.memory.causes import handler_execution
from agentfield.memory.reacting.calling import call
from agentfield.memory.reacting.growth import Growth
from agentfield.memory.reacting.insisting import insist
from agentfield.memory.reacting.letters import Letter, letter, letter_of_gap, said
from agentfield.memory.reacting.loops import LoopDetected, LoopGuard
from agentfield.memory.reacting.redelivering import settle
from agentfield.memory.reacting.registration import Registration
from agentfield.memory.resolving import Resolver

logger = logging.getLogger("agentfield.handlers")

_LOGGED = 500
"""Characters of an exception's text that the log of the program shows."""


class Taken:
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


class Handling:
    """The handling of events by one handler of an agent."""

    def __init__(
        self,
        fabric: Fabric,
        registration: Registration,
        *,
        agent: str,
        actor_id: str,
        max_depth: int,
        shared: bool,
        is_ending: Callable[[], bool],
    ) -> None:
        """``is_ending``: whether a cancellation that comes now is for whoever runs this, and not the handler's own."""
        self._is_ending = is_ending
        self._fabric = fabric
        self._registration = registration
        self._name = registration.name
        self._agent = agent
        self._actor_id = actor_id
        self._shared = shared
        self._resolver = Resolver(fabric, registration.schemas)
        self._loops = LoopGuard(fabric, registration.name, limit=max_depth, clock=fabric.loop.time)
        self._growth = Growth(fabric, agent=agent, handler=registration.name, limit=max_depth, clock=fabric.loop.time)

    async def event(self, taken: Taken) -> Event | None:
        """The event to handle, or None if it cannot be; it lies in the dead letters then, if it is agentfield's."""
        try:
            event = self._resolver.event_at_hand(taken.record, taken.previous)
            if event is None:
                event = await insist(self._name, lambda: self._resolver.event(taken.record, taken.previous))
        except (DecodeError, InvalidInputError) as error:
            await self._set_aside(taken, error)
            await self._finish(taken)
            return None
        taken.event = event
        return event

    async def _set_aside(self, taken: Taken, error: AgentFieldError) -> None:
        """What is no event of agentfield's is skipped; one whose data cannot be read may be readable another day."""
        try:
            outline = decode_outline(taken.record, self._fabric.subjects)
        except DecodeError:
            logger.error("handler %s skips a foreign message: %s", self._name, error)
        else:
            await self._give_up(outline, taken, error, 0)

    async def once(self, event: Event, taken: Taken, attempt: int) -> str | None:
        """One try. None when the event is finished: handled, or given up and in the dead letters; else what failed."""
        # Who has a dead letter replayed knows what it was about.
        if taken.letter is None and self._loops.is_reached(event):
            await self._give_up(event, taken, await self._loops.report(event, taken.record), attempt)
            await self._finish(taken)
            return None
        if self._growth.is_due(event):
            await self._growth.look(taken.record)
        try:
            effects = self._effects(taken, event)
            here = handler_execution(event, self._name, agent=self._agent, actor_id=self._actor_id, effects=effects)
            await call(self._registration, event, here)
        # The handler is the user's: whatever it raises is theirs to see, even a cancellation of its own making, or
        # what would end the process; that would come again in every instance that takes over.
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, GeneratorExit):
                raise
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                if self._is_ending():
                    raise
                while task.uncancel():  # the handler has cancelled its own task, as a timeout of its own may do
                    pass
            if attempt < self._registration.retries:
                logger.warning(
                    "handler %s failed on %s (revision %d), try %d: %s: %s",
                    self._name, event.key, event.revision, attempt + 1, type(error).__name__, said(error, _LOGGED),
                )  # fmt: skip
                tries = f"{attempt + 1} of {self._registration.retries + 1}"
                return f"failed {tries} tries: {type(error).__name__}: {said(error)}"
            await self._give_up(event, taken, error, attempt + 1)
        await self._finish(taken)
        return None

    async def _finish(self, taken: Taken) -> None:
        """It was handled, or lies in the dead letters: a letter that was replayed has done its duty."""
        if taken.letter is not None:
            await settle(self._fabric, taken.letter)

    def _effects(self, taken: Taken, event: Event) -> Effects | None:
        """The same for every try, so that a write which is made again is recognised.

        None where every instance handles the event: what one of them writes is no repetition of another's.
        """
        if not self._shared:
            return None
        if taken.effects is None:
            taken.effects = Effects(
                agent=self._agent,
                handler=self._name,
                event_id=event.id,
                revision=event.revision,
                subject=taken.record.subject,
            )
        else:
            taken.effects.again()
        return taken.effects

    async def _give_up(self, event: Event, taken: Taken, error: BaseException, tries: int) -> None:
        """Put the event into the dead letters, with what went wrong; insists until it is stored."""
        name = self._name
        if not isinstance(error, LoopDetected):  # of those there may be many, and their guard reports them
            logger.error(
                "handler %s gives up on %s (revision %d) after %s: %s: %s",
                name, event.key, event.revision, "1 try" if tries == 1 else f"{tries} tries",
                type(error).__name__, said(error, _LOGGED),
            )  # fmt: skip
        replays = 0 if taken.letter is None else taken.letter.replays + 1
        payload = letter(event, error, agent=self._agent, handler=name, tries=tries, replays=replays)
        await self._store_letter(payload, f"{event.id}-{self._agent}-{name}-{taken.sequence}")

    async def report_gap(self, gap: Shortened) -> None:
        """Say that events are gone which this handler had still to handle, where people look for what went wrong."""
        error = ResyncRequired(requested=gap.after + 1, first_available=gap.first_available)
        logger.error(
            "handler %s: events were taken out of the log, the last of them revision %d, and this handler had come to "
            "revision %d: whatever was for it in between is lost to it; it goes on from revision %d",
            self._name, gap.first_available - 1, gap.after, gap.first_available,
        )  # fmt: skip
        payload = letter_of_gap(error, agent=self._agent, handler=self._name)
        await self._store_letter(payload, f"gap-{self._agent}-{self._name}-{gap.first_available}")

    async def _store_letter(self, payload: bytes, id: str) -> None:
        store = self._fabric.deadletters.store
        await insist(
            self._name,
            lambda: store(self._agent, self._name, payload, letter_id=id),
            "storing the dead letter",
            unless=(),
        )
