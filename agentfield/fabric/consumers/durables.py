"""The durable consumers of handlers: what they are called, and which there are.

Owns: the name of a handler's consumer, what its metadata says, and the list of them on the server, with how far each
one is behind and whether anybody takes from it. Must not know: which handlers a program declares. Invariant: two
handlers never share a name: the parts of it can be told apart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from agentfield.fabric import records
from agentfield.fabric.faults import Fault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import PATIENCE, api
from agentfield.fabric.wire.connection import Connection

_PREFIX = "handler-"
_NEVER = "0001-"
"""How the server begins a time that is not set."""


def durable_name(agent: str, handler: str) -> str:
    """The name of a handler's consumer. A ``-`` in the handler's name is written ``=``, so the last one divides."""
    return f"{_PREFIX}{agent}-{handler.replace('-', '=')}"


def described(agent: str, handler: str, patterns: Sequence[str]) -> Mapping[str, str]:
    """What a consumer's metadata says of its handler, for whoever lists consumers."""
    return {"agent": agent, "handler": handler, "patterns": orjson.dumps(list(patterns)).decode()}


def _parts(name: str) -> tuple[str, str] | None:
    agent, dash, handler = name.removeprefix(_PREFIX).rpartition("-")
    return (agent, handler.replace("=", "-")) if name.startswith(_PREFIX) and dash and agent else None


@dataclass(frozen=True, slots=True)
class Durable:
    """A handler's consumer, as the server describes it."""

    agent: str
    handler: str
    patterns: tuple[str, ...]
    """As they were declared last; empty if that is not known."""
    filters: tuple[str, ...]
    lag: int
    """Events for it that are not known to have been handled."""
    floor: int
    """Everything up to this sequence has been handled."""
    active: bool
    """Whether an instance holds it now. Before the first event, and after seconds without one, none does, however many
    are there for the next."""
    waiting: int
    """Requests for its events that are open, those of instances that left less than 20 seconds ago included."""
    created: datetime
    last_active: datetime | None
    """When an event was last delivered or acknowledged: aware, UTC. None for never."""

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Durable | None:
        """The handler's consumer that the server's information is about; None if it is no handler's."""
        parts = _parts(str(info["name"]))
        if parts is None:
            return None
        config = info["config"]
        times = [_time(info[name].get("last_active")) for name in ("delivered", "ack_floor")]
        active = any(group.get("pinned_client_id") for group in info.get("priority_groups") or ())
        return cls(
            *parts,
            patterns=_patterns((config.get("metadata") or {}).get("patterns")),
            filters=tuple(config.get("filter_subjects") or ()),
            lag=int(info["num_pending"]) + int(info["num_ack_pending"]),
            floor=int(info["ack_floor"]["stream_seq"]),
            active=active,
            waiting=int(info.get("num_waiting") or 0),
            created=_time(info["created"]) or datetime.fromtimestamp(0, UTC),
            last_active=max((time for time in times if time is not None), default=None),
        )


async def durables(connection: Connection, stream: str, *, patience: float = PATIENCE) -> list[Durable]:
    """The consumers of all handlers, by agent and handler. Raises :class:`UnavailableError`."""
    found: list[Durable] = []
    async for page in _pages(connection, f"CONSUMER.LIST.{stream}", patience):
        found.extend(durable for info in page if (durable := Durable.of(info)) is not None)
    return sorted(found, key=lambda durable: (durable.agent, durable.handler))


async def consumers(connection: Connection, stream: str, *, patience: float = PATIENCE) -> AsyncIterator[Any]:
    """Every consumer of a stream, whoever made it, as the server describes it. Raises :class:`UnavailableError`."""
    async for page in _pages(connection, f"CONSUMER.LIST.{stream}", patience):
        for info in page:
            yield info


async def durable_of(
    connection: Connection, stream: str, agent: str, handler: str, *, patience: float = PATIENCE
) -> Durable | None:
    """The consumer of one handler; None if there is none. Raises :class:`UnavailableError`."""
    try:
        info = await api(connection, f"CONSUMER.INFO.{stream}.{durable_name(agent, handler)}", patience=patience)
    except Fault as fault:
        if isinstance(fault, ServerFault) and fault.verdict is Verdict.ABSENT:
            return None
        raise error_of(fault, f"asking for the consumer of {agent}.{handler}") from None
    return Durable.of(info)


async def handlers_of(connection: Connection, stream: str, agent: str, *, patience: float = PATIENCE) -> set[str]:
    """The handlers of an agent that have a consumer; cheaper than all there is to say of them."""
    found: set[str] = set()
    async for page in _pages(connection, f"CONSUMER.NAMES.{stream}", patience):
        parts = (_parts(str(name)) for name in page)
        found.update(each[1] for each in parts if each is not None and each[0] == agent)
    return found


async def forget(connection: Connection, stream: str, agent: str, handler: str, *, patience: float = PATIENCE) -> bool:
    """Delete a handler's consumer, and with it how far it has come; whether it was still there."""
    try:
        await api(connection, f"CONSUMER.DELETE.{stream}.{durable_name(agent, handler)}", patience=patience)
    except Fault as fault:
        if isinstance(fault, ServerFault) and fault.verdict is Verdict.ABSENT:
            return False
        raise error_of(fault, f"removing the consumer of {agent}.{handler}") from None
    return True


async def _pages(connection: Connection, subject: str, patience: float) -> AsyncIterator[list[Any]]:
    offset, total = 0, 1
    while offset < total:
        try:
            answer = await api(connection, subject, {"offset": offset}, patience=patience)
        except Fault as fault:
            if isinstance(fault, ServerFault) and fault.verdict is Verdict.ABSENT:
                return  # no stream, no consumers
            raise error_of(fault, "listing the consumers of handlers") from None
        page = answer.get("consumers") or []
        yield page
        if not page:
            return
        offset, total = offset + len(page), int(answer["total"])


def _patterns(packed: str | None) -> tuple[str, ...]:
    try:
        return tuple(str(each) for each in orjson.loads(packed or "[]"))
    except (ValueError, TypeError):
        return ()


def _time(text: str | None) -> datetime | None:
    if not text or text.startswith(_NEVER):
        return None
    return datetime.fromtimestamp(records.nanoseconds_of(text) / 1e9, UTC)
