"""Journals: what replicas write down to agree on a stream's messages, and making them anew without what was destroyed.

Deleting a message overwrites it in the stream's own files. On a cluster, each replica also has the journal of the
group's agreement (Raft's log), which holds the message as it was proposed and is cut only when it grows large. Reducing
the stream to one replica dissolves the group and removes its journals; raising it again begins new ones. Measured with
nats-server 2.15.1. Invariant: what was said to be made anew has another group than before; whatever happens, the number
of replicas is put back, if not by us then by the next process that connects.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from agentfield.errors import AgentFieldError
from agentfield.fabric.faults import Fault
from agentfield.fabric.jetstream import api
from agentfield.fabric.wire.connection import Connection

logger = logging.getLogger("agentfield.keys")

_PAUSE = 0.1
_WITHIN = 20.0
"""Seconds that each of the two steps may take; they take about one."""
_TRIES = 3
"""A process that connects at that moment finds too few replicas and raises them before the group is dissolved."""


async def renew_journals(connection: Connection, stream: str) -> bool:
    """Make the journals of a stream's replicas anew; True if none is left that knows the past.

    Done only while every replica is there and up to date. For a moment the stream has one replica; writes to it wait.
    False, with a warning in the log, if it could not be done: doing it again is safe.
    """
    try:
        before = await _info(connection, stream)
        replicas = int(before["config"].get("num_replicas", 1))
        if replicas == 1:
            return True
        for _ in range(_TRIES):
            if not _is_whole(before, replicas):
                logger.warning("stream %s: a replica is away or behind; its journals stay as they are for now", stream)
                return False
            try:
                await _scale(connection, stream, 1)
            finally:
                after = await _scale(connection, stream, replicas)
            if after["cluster"]["raft_group"] != before["cluster"]["raft_group"]:
                return True
            before = after
    except (Fault, AgentFieldError, TimeoutError) as error:
        logger.warning("stream %s: the journals of its replicas could not be made anew: %s", stream, error)
        return False
    logger.warning("stream %s: others raised its replicas while its journals were being made anew", stream)
    return False


async def _scale(connection: Connection, stream: str, replicas: int) -> dict[str, Any]:
    """Give a stream so many replicas; return what it is like when it has them, or has been given others meanwhile."""
    config = (await _info(connection, stream))["config"]
    await api(connection, f"STREAM.UPDATE.{stream}", {**config, "num_replicas": replicas}, patience=_WITHIN)
    async with asyncio.timeout(_WITHIN):
        while True:
            info = await _info(connection, stream)
            if int(info["config"].get("num_replicas", 1)) != replicas or _is_whole(info, replicas):
                return info
            await asyncio.sleep(_PAUSE)


def _is_whole(info: dict[str, Any], replicas: int) -> bool:
    cluster = info["cluster"]
    peers = cluster.get("replicas") or []
    current = all(peer.get("current") and not peer.get("offline") for peer in peers)
    return bool(cluster.get("leader")) and "desired" not in cluster and len(peers) == replicas - 1 and current


async def _info(connection: Connection, stream: str) -> dict[str, Any]:
    return await api(connection, f"STREAM.INFO.{stream}", patience=_WITHIN)
