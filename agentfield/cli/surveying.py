"""What there is to say of every handler: its consumer, who serves it, its dead letters, and whether it is an orphan.

Owns: putting together what the server, the agents that answer and the stream of dead letters say. Must not know: how it
is shown. Invariant: a handler counts as an orphan only on evidence: its agent runs and does not have it, or nothing has
happened to it for long and nobody runs that could.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from agentfield.fabric.calling.micro import ServiceInfo, find_all
from agentfield.fabric.consumers.durables import Durable, durables
from agentfield.fabric.deadletters import DeadLetters
from agentfield.fabric.log import Log
from agentfield.fabric.topology import Topology
from agentfield.fabric.wire.connection import Connection

ABANDONED = timedelta(days=7)
"""A handler that nobody serves counts as an orphan when nothing has happened to it for so long."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The handlers of a namespace, the instances of agents that answer, and the dead letters by agent and handler."""

    handlers: Sequence[Surveyed]
    agents: Sequence[ServiceInfo]
    letters: Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A handler."""

    durable: Durable
    instances: int
    """Instances that say that they run it."""
    letters: int
    orphan: str | None
    """Why it counts as an orphan; None if it does not."""

    @property
    def name(self) -> str:
        """Agent and handler."""
        return f"{self.durable.agent}.{self.durable.handler}"

    @property
    def is_served(self) -> bool:
        """Whether an instance runs it now."""
        return self.instances > 0 or self.durable.active

    def fields(self) -> dict[str, Any]:
        """The handler as JSON."""
        durable = self.durable
        return {
            "agent": durable.agent,
            "handler": durable.handler,
            "patterns": durable.patterns,
            "served": self.is_served,
            "instances": self.instances,
            "lag": durable.lag,
            "handled_up_to": durable.floor,
            "last_active": durable.last_active,
            "created": durable.created,
            "dead_letters": self.letters,
            "orphan": self.orphan,
        }


async def survey(connection: Connection, topology: Topology, *, patience: float) -> Survey:
    """Look at every handler. Creates nothing. Raises :class:`UnavailableError`."""
    letters = DeadLetters(Log(connection, topology, timeout=patience), topology)
    found, agents, counts = await asyncio.gather(
        durables(connection, topology.log.name, patience=patience), find_all(connection), letters.counts()
    )
    now = datetime.now(UTC)
    handlers = []
    for durable in found:
        instances = [info for info in agents if info.name == durable.agent]
        running = sum(durable.handler in (info.handlers or ()) for info in instances)
        count = counts.get((durable.agent, durable.handler), 0)
        handlers.append(Surveyed(durable, running, count, orphaned(durable, instances, now)))
    return Survey(handlers, agents, counts)


def orphaned(durable: Durable, instances: Sequence[ServiceInfo], now: datetime) -> str | None:
    """Why a handler counts as an orphan, given the instances of its agent that answer; None if it does not."""
    if durable.active or any(info.handlers is None or durable.handler in info.handlers for info in instances):
        return None
    if instances:
        return f"agent {durable.agent} is running, and has no such handler"
    if durable.last_active is None and durable.floor:
        return None  # the server has been restarted since, and knows no longer when that was
    idle = now - (durable.last_active or durable.created)
    return f"nobody serves it, and nothing has happened to it for {idle.days} days" if idle >= ABANDONED else None
