"""Event and Entry: what happened to a key, and what a key holds. The shapes users meet; how they are stored is codec's.

Both are immutable and come from the log alone: their times are the server's, their revisions the log's sequences.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from agentfield.scope import ScopeKind

Operation = Literal["set", "delete"]
Reason = Literal["expired", "cleared"]


class Writer(BaseModel):
    """Who wrote, and because of what. Everything may be None: a plain script has no agent and no execution."""

    model_config = ConfigDict(frozen=True)

    agent: str | None = None
    function: str | None = None
    """The reasoner or handler that wrote: its name."""
    execution_id: str | None = None
    workflow_id: str | None = None
    session_id: str | None = None
    cause: str | None = None
    """The id of the event that led to this write."""
    cause_revision: int | None = None
    """That event's revision."""
    depth: int = 0
    """How many handlers, each started by what the one before had written, lie between the root execution and this."""
    path: tuple[str, ...] = ()
    """The executions through whose calls the writing one came to run, the nearest 16, the first caller first; each is
    ``agent.function/execution id``. Empty for one that nobody called."""
    trace: str | None = None
    """W3C ``traceparent`` of the execution that wrote."""


class ReplayedFrom(BaseModel):
    """Where an event was recorded first, of one that was replayed into another namespace: see ``agentfield replay``."""

    model_config = ConfigDict(frozen=True)

    namespace: str
    revision: int
    """Its revision there."""
    timestamp: datetime
    """When it was stored there: aware, UTC."""
    ttl: float | None = None
    """Seconds after which the value was to expire, counted from then; None for never."""


class Event(BaseModel):
    """One change of one key. ``model_dump(mode="json")`` gives it as plain JSON values, its time as RFC 3339 with Z."""

    model_config = ConfigDict(frozen=True)

    key: str
    data: Any = None
    """The value that was set; None for a delete."""
    previous_data: Any = None
    """The value before, by the log; None if there was none, or it had expired by then."""
    scope: ScopeKind
    timestamp: datetime
    """When the server stored it: aware, UTC."""
    scope_id: str
    operation: Operation
    reason: Reason | None = None
    """Why a delete happened, if nobody asked for just that: the value expired, or its scope was cleared."""
    revision: int
    """The event's sequence in the log: grows with every event of any key."""
    previous_revision: int | None = None
    """The revision of the key's event before this one, a delete included; None if there was none."""
    id: str
    writer: Writer
    ttl: float | None = None
    """Seconds after which the value expires; None for never."""
    schema_name: str | None = None
    """The schema that ``data`` was written under; None for none, and for a delete."""
    schema_version: int | None = None
    """That schema's version when it was written."""
    erased: bool = False
    """Whether the value was personal and has been erased: ``data`` is None then, for good, and the key's past is all
    that is left."""
    replayed_from: ReplayedFrom | None = None
    """Where it was recorded first, if it was replayed into this namespace: ``id`` and ``writer`` are those of then,
    ``revision`` and ``timestamp`` those of the copy."""

    @property
    def expires_at(self) -> datetime | None:
        """When the value expires: aware, UTC. None for never, and for a delete."""
        return None if self.ttl is None else self.timestamp + timedelta(seconds=self.ttl)


class Entry(BaseModel):
    """What a key holds now, or held then, and which scope answered."""

    model_config = ConfigDict(frozen=True)

    key: str
    value: Any
    revision: int
    """The sequence in the log of the event that set the value: pass it as ``if_revision``."""
    scope: ScopeKind
    scope_id: str
    timestamp: datetime
    """When the server stored the value: aware, UTC."""
    writer: Writer
    expires_at: datetime | None = None
    """When the value expires: aware, UTC. None for never."""
    schema_name: str | None = None
    """The schema that the value was written under; None for none."""
    schema_version: int | None = None
    """That schema's version when it was written."""
