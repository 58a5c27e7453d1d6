"""How much of a stream each replica holds, asked from outside.

A server answers for its stream's leader alone. But a consumer that has one replica lives on one of the servers that
have the stream, it says on which, and what it has pending is counted there. So short-lived consumers, which the server
places at random, tell in the end of all. Invariant: none of them stays: each is deleted, or forgotten when nobody asks.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress

from agentfield.errors import UnavailableError
from agentfield.fabric.faults import Fault
from agentfield.fabric.jetstream import PATIENCE, api
from agentfield.fabric.wire.connection import Connection

_AT_ONCE = 6
_ROUNDS = 8
"""Of so many rounds of six, with three replicas, the last one is missed once in a hundred million times."""
_INACTIVE = 10_000_000_000
"""Nanoseconds after which the server removes a consumer that could not be deleted."""


async def messages_by_replica(
    connection: Connection, stream: str, servers: Collection[str], *, patience: float = PATIENCE
) -> Mapping[str, int]:
    """The number of messages that these servers hold of a stream, of those of them that could be asked.

    Raises :class:`UnavailableError` and faults of the API.
    """
    found: dict[str, int] = {}
    for _ in range(_ROUNDS):
        for server, count in await asyncio.gather(*(_ask(connection, stream, patience) for _ in range(_AT_ONCE))):
            found[server] = max(count, found.get(server, 0))
        if set(servers) <= found.keys():
            break
    return {server: count for server, count in found.items() if server in servers}


async def _ask(connection: Connection, stream: str, patience: float) -> tuple[str, int]:
    name = f"replica-{uuid.uuid4().hex}"
    config = {
        "name": name,
        "ack_policy": "none",
        "deliver_policy": "all",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": _INACTIVE,
    }
    body = {"stream_name": stream, "config": config, "action": "create"}
    answer = await api(connection, f"CONSUMER.CREATE.{stream}.{name}", body, patience=patience)
    with suppress(Fault, UnavailableError):  # then the server removes it by itself
        await api(connection, f"CONSUMER.DELETE.{stream}.{name}", patience=patience)
    return str((answer.get("cluster") or {}).get("leader")), int(answer["num_pending"])
