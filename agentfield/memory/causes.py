"""Causes: from an event to the execution it starts, and from a value back to what led to it.

Owns: what a handler's execution takes over from its event, and following the causes that events name, one after the
other, to where they end. Must not know: how a chain is shown. Invariant: a chain goes back in the log with every step,
so it ends; and where it ends, it says why.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from agentfield import execution
from agentfield.codec import Record, decode_outline
from agentfield.effects import Effects
from agentfield.errors import DecodeError
from agentfield.event import Event, Writer
from agentfield.execution import Execution, Seen
from agentfield.fabric.fabric import Fabric
from agentfield.header import EVENT_ID
from agentfield.memory.resolving import Resolver

End = Literal["root", "foreign", "trimmed", "missing", "unknown"]
"""Why a chain goes back no further: nothing led to the write but who made it; something other than agentfield wrote it;
the log does not go back so far; the log holds something else in the cause's place; the write names a cause, but not
where it is."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a chain ends, and why."""

    end: End
    text: str
    revision: int | None = None
    """Where the event would be that could not be followed."""


def handler_execution(
    event: Event, handler: str, *, agent: str, actor_id: str | None, effects: Effects | None
) -> Execution:
    """A handler runs in the event's workflow and session, so that what it reads is what the writer saw."""
    writer = event.writer
    return Execution(
        execution_id=execution.new_id(),
        workflow_id=event.scope_id if event.scope == "workflow" else writer.workflow_id,
        session_id=event.scope_id if event.scope == "session" else writer.session_id,
        agent=agent,
        actor_id=actor_id,
        parent_id=writer.execution_id,
        cause=event.id,
        cause_revision=event.revision,
        trace=execution.next_span(writer.trace),
        function=handler,
        depth=writer.depth + 1,
        seen=Seen(event.revision),
        effects=effects,
    )


async def chain(fabric: Fabric, record: Record, *, values: bool = True) -> AsyncIterator[Event | Origin]:
    """The event of a record, the one that led to it, the one that led to that, … and last of all the chain's origin.

    Without ``values``, the events come without their data. A value that cannot be read counts as written by something
    foreign. Raises :class:`UnavailableError`.
    """
    resolver = Resolver(fabric)
    while True:
        try:
            event = await resolver.event(record) if values else decode_outline(record, fabric.subjects)
        except DecodeError as error:
            yield Origin("foreign", f"agentfield cannot read what is there: {error}", record.sequence)
            return
        yield event
        before = await _cause(fabric, event)
        if isinstance(before, Origin):
            yield before
            return
        record = before


async def _cause(fabric: Fabric, event: Event) -> Record | Origin:
    """The record of the event that led to this one, or why there is none."""
    writer, revision = event.writer, event.writer.cause_revision
    if writer.cause is None:
        return Origin("root", _root(event))
    if revision is None:
        return Origin("unknown", f"its cause is the event {writer.cause}, but where that is, it does not say")
    if not 0 < revision < event.revision:
        return Origin("missing", f"it names revision {revision} as its cause, which was not before it", revision)
    record = await fabric.log.at(revision)
    if record is None:
        first = await fabric.log.begins()
        if revision < first:
            return Origin("trimmed", f"its cause, r{revision}, is gone: the log begins at r{first} now", revision)
        return Origin("missing", f"its cause, r{revision}, is not in the log any more", revision)
    if record.headers.get(EVENT_ID) != writer.cause:
        return Origin("missing", f"its cause, {writer.cause}, is not at r{revision}, where it was", revision)
    return record


def _root(event: Event) -> str:
    if event.reason == "cleared" and event.writer.execution_id is None:
        return "nobody asked for it: the time of its scope was over"
    return _beginning(event.writer)


def _beginning(writer: Writer) -> str:
    if writer.path:
        return f"{writer.path[0].partition('/')[0] or 'a program'} made its calls outside any handler"
    if writer.function is not None:
        return f"{'.'.join(filter(None, (writer.agent, writer.function)))} was called from outside any handler"
    if writer.agent is not None:
        return f"code of agent {writer.agent} wrote it outside any handler and reasoner"
    return "a program that is no agent wrote it"
