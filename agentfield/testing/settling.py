"""``settled``: waiting until the handlers of running agents have nothing left to do.

Owns: the order of looking and waiting on which the promise rests. First what every handler has surely handled is noted,
then the log's end, then what lies between and is for a handler; when all that has been handled, the log's end is looked
at again. A handler's own writes are stored before it is done, so only if nothing for a handler is found there is
nothing left. Must not know: how events reach handlers. Invariant: it never returns while an event that was stored
before, or that such an event led to, waits for one of the handlers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from agentfield.agent import Agent
from agentfield.amount import check_span
from agentfield.codec import Record
from agentfield.errors import InvalidInputError
from agentfield.fabric.fabric import Fabric
from agentfield.memory.reacting.subscription import HandlerRun

PATIENCE = 15.0
"""Seconds: enough for the default retries of a handler that always fails, 6.2 s, with room for a busy machine."""
_SHORTEST_PAUSE = 0.001
_LONGEST_PAUSE = 0.02
_ASK_AGAIN = 0.1
"""Seconds between asking the server what an instance in another process may have handled."""
_NOT_BEGUN = "not begun"
_NAMED = 10


class Unhandled(NamedTuple):
    """An event that a handler has still to handle."""

    agent: str
    handler: str
    event: str
    """Its key, scope and revision."""
    standing: str
    """How far it has come: not begun, being handled, or failed, with the error."""

    def __str__(self) -> str:
        return f"{self.agent}.{self.handler}: {self.event}: {self.standing}"


class NotSettledError(AssertionError):
    """Handlers were still busy at the deadline; ``unhandled`` says which, with what, in the order of the log.

    It is empty when handlers had handled all they were given and kept causing more.
    """

    def __init__(self, unhandled: Sequence[Unhandled], within: float, last: Sequence[str] = ()) -> None:
        self.unhandled = tuple(unhandled)
        if unhandled:
            lines = [f"not settled within {within:g} s; still to be handled:", *map(str, unhandled[:_NAMED])]
            if len(unhandled) > _NAMED:
                lines.append(f"… and {len(unhandled) - _NAMED} more")
        else:
            lines = [f"not settled within {within:g} s: there was always one more event to handle, the last:", *last]
        super().__init__("\n  ".join(lines))


async def settled(*agents: Agent, within: float = PATIENCE) -> None:
    """Return when every handler of these agents has handled every event stored so far, and what came of it.

    That includes the events that handlers cause while this waits, through any number of agents. An event that went to
    the dead letters counts as handled. The agents must be served in this process; what other instances of them handle
    elsewhere counts, too. Not waited for: what a handler began and did not await, calls that the test itself has not
    awaited, and what is yet to come by itself, such as the end of a ttl.

    Raises :class:`NotSettledError` after ``within`` seconds, and :class:`InvalidInputError` for an agent with handlers
    that is not served here.
    """
    within = check_span(within, "within")
    logs = _logs(agents)
    try:
        async with asyncio.timeout(within):
            while any([await log.look() for log in logs]):
                for log in logs:
                    await log.handled()
    except TimeoutError:
        unhandled = [each for log in logs for each in log.unhandled()]
        raise NotSettledError(unhandled, within, [each for log in logs for each in log.last]) from None


class _Handler:
    """A handler with all its instances here that share its events, and the events that it has still to handle."""

    def __init__(self, agent: str, name: str) -> None:
        self.agent = agent
        self.name = name
        self.instances: list[HandlerRun] = []
        self.left: dict[int, Record] = {}

    @property
    def floor(self) -> int:
        return max(instance.floor for instance in self.instances)

    def hears(self, record: Record) -> bool:
        try:
            return self.instances[0].hears(record)
        except InvalidInputError:
            return False  # not an event of agentfield's: handlers skip it

    def standing(self, sequence: int) -> str | None:
        found = [instance.standing(sequence) for instance in self.instances]
        if None in found:
            return None
        return next((each for each in found if each != _NOT_BEGUN), _NOT_BEGUN)

    def is_busy(self) -> bool:
        for sequence in [sequence for sequence in self.left if self.standing(sequence) is None]:
            del self.left[sequence]
        return bool(self.left)

    async def ask(self) -> None:
        for instance in self.instances:
            await instance.learn_floor()


class _Log:
    """The handlers that hear one log."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._handlers: dict[tuple[str, str, int], _Handler] = {}
        self._looked_at: int | None = None
        self.last: list[str] = []

    def add(self, agent: str, run: HandlerRun) -> None:
        own = 0 if run.shared else len(self._handlers) + 1  # an instance that shares its events with no other
        self._handlers.setdefault((agent, run.name, own), _Handler(agent, run.name)).instances.append(run)

    async def look(self) -> bool:
        """Take in what was stored since the last look: whether there was anything for a handler."""
        floors = {name: handler.floor for name, handler in self._handlers.items()}  # before the end is asked for
        start = min(floors.values()) if self._looked_at is None else self._looked_at
        first = self._looked_at is None
        end = int((await self._fabric.log.state())["last_seq"])
        found: list[str] = []
        async for record in self._fabric.log.read([self._fabric.subjects.all_memory], start=start + 1, stop=end):
            for name, handler in self._handlers.items():
                if handler.hears(record) and not (first and record.sequence <= floors[name]):
                    handler.left[record.sequence] = record
                    found = [*found[1 - _NAMED :], f"{handler.agent}.{handler.name}: {self._event(record)}"]
        self._looked_at = max(start, end)
        self.last = found or self.last
        return bool(found)

    async def handled(self) -> None:
        """Return when all that was found has been handled."""
        loop = asyncio.get_running_loop()
        pause = _SHORTEST_PAUSE
        ask_at = loop.time() + _ASK_AGAIN
        while busy := [handler for handler in self._handlers.values() if handler.is_busy()]:
            if loop.time() >= ask_at:
                for handler in busy:
                    await handler.ask()
                ask_at = loop.time() + _ASK_AGAIN
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def unhandled(self) -> Iterator[Unhandled]:
        left = [(sequence, handler) for handler in self._handlers.values() for sequence in handler.left]
        for sequence, handler in sorted(left, key=lambda item: item[0]):
            if (standing := handler.standing(sequence)) is not None:
                yield Unhandled(handler.agent, handler.name, self._event(handler.left[sequence]), standing)

    def _event(self, record: Record) -> str:
        scope, key = self._fabric.subjects.parse(record.subject)
        where = "" if scope.kind == "global" else f" {scope.id!r}"
        return f"{key} in {scope.kind}{where} (revision {record.sequence})"


def check_agents(agents: Sequence[Agent]) -> Sequence[Agent]:
    """The same, if all of them are agents. Raises :class:`InvalidInputError`."""
    for agent in agents:
        if not isinstance(agent, Agent):
            raise InvalidInputError(f"{agent!r} is no Agent: give agents, one argument each")
    return agents


def _logs(agents: Sequence[Agent]) -> list[_Log]:
    logs: dict[tuple[str, str], _Log] = {}
    for agent in check_agents(agents):
        handlers: Mapping[str, HandlerRun] = agent.handlers
        if agent.memory.registrations and not handlers:
            raise InvalidInputError(
                f"agent {agent.name!r} is not served in this process: settled() can wait for no one"
            )
        for run in handlers.values():
            place = (run.fabric.connection.url, run.fabric.log.stream)
            logs.setdefault(place, _Log(run.fabric)).add(agent.name, run)
    return list(logs.values())
