"""What the doctor looks at, gathered without creating or changing anything.

Owns: asking the server, the agents and, for an embedded server, this machine. Must not know: what counts as wrong.
Invariant: every question has a deadline.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentfield.cli.connecting import CLIENT_NAME, Place, running_server, stream_info
from agentfield.cli.surveying import Survey, survey
from agentfield.fabric import records
from agentfield.fabric.faults import NO_MESSAGE, Fault, ServerFault, error_of
from agentfield.fabric.jetstream import api
from agentfield.fabric.log import Log
from agentfield.fabric.personal.keys import Keys
from agentfield.fabric.replicas import messages_by_replica
from agentfield.fabric.topology import StreamSpec, Topology
from agentfield.fabric.trimmed import expected
from agentfield.fabric.wire.connection import Connection
from agentfield.local import Server

_LOOKS = 5
"""How often a bucket is looked at that is behind, or was not filled yet: that it is new, or a burst, is no fault."""
_PAUSE = 0.5
"""Seconds until it is looked at again."""


@dataclass(frozen=True, slots=True)
class Skew:
    """By how many seconds the server's clock is ahead of the one here, and how sure that is."""

    seconds: float
    uncertainty: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found."""

    url: str
    topology: Topology
    version: str
    clustered: bool
    account: Mapping[str, Any]
    embedded: Server | None
    fault: str | None
    """What the embedded server finds wrong with itself."""
    disk_free: int | None
    """Bytes, where the embedded server keeps its data."""
    streams: Mapping[str, Mapping[str, Any] | None]
    """The server's word on every stream of the table; None for one that is missing."""
    replicas: Mapping[str, int]
    """On a cluster: by how many messages each replica of the log is short of what it should hold."""
    survey: Survey
    overdue: int
    """Timers that have come due and wait for a worker."""
    overdue_for: float
    """Seconds that the oldest of them has been waiting."""
    skew: Skew | None
    keys_lost: str | None
    """What happened to the bucket of keys of personal data, if it was lost."""

    def info(self, spec: StreamSpec) -> Mapping[str, Any] | None:
        """The server's word on a stream."""
        return self.streams.get(spec.name)


async def examine(place: Place, *, connect_patience: float, patience: float) -> Facts:
    """Look at everything. Raises what connecting raises, and :class:`UnavailableError` if an answer does not come."""
    embedded, url = None, place.url
    if url is None:
        embedded = await running_server()
        url = embedded.url
    connection = await Connection.open(url, namespace=place.namespace, name=CLIENT_NAME, timeout=connect_patience)
    try:
        return await _look(connection, embedded, patience)
    except Fault as fault:
        raise error_of(fault, "examining the server") from None
    finally:
        await connection.aclose()


async def _look(connection: Connection, embedded: Server | None, patience: float) -> Facts:
    topology = Topology(connection.namespace)
    account = await api(connection, "INFO", patience=patience)
    streams = await _streams(connection, topology, patience)
    for _ in range(_LOOKS - 1):
        if not any(map(_is_behind, streams.values())):
            break
        await asyncio.sleep(_PAUSE)
        streams = await _streams(connection, topology, patience)
    there = streams[topology.log.name] is not None and streams[topology.deadletters.name] is not None
    timers = streams[topology.timers.name] is not None
    keys = there and streams[topology.keys.name] is not None
    overdue = await _overdue(connection, topology, patience) if timers else (0, 0.0)
    return Facts(
        url=connection.url,
        topology=topology,
        version=str(connection.server_info.get("version")),
        clustered=connection.clustered,
        account=account,
        embedded=embedded,
        fault=None if embedded is None else await asyncio.to_thread(embedded.fault),
        disk_free=None if embedded is None else shutil.disk_usage(embedded.store_dir).free,
        streams=streams,
        replicas=await _short(connection, topology, patience) if there and connection.clustered else {},
        survey=await survey(connection, topology, patience=patience) if there else Survey((), (), {}),
        overdue=overdue[0],
        overdue_for=overdue[1],
        skew=await _skew(connection, topology, patience) if there else None,
        keys_lost=await _keys_lost(connection, topology, patience) if keys else None,
    )


async def _keys_lost(connection: Connection, topology: Topology, patience: float) -> str | None:
    return await Keys(Log(connection, topology, timeout=patience), topology).policies.loss()


async def _streams(
    connection: Connection, topology: Topology, patience: float
) -> Mapping[str, Mapping[str, Any] | None]:
    found = await asyncio.gather(*(stream_info(connection, spec.name, patience) for spec in topology.streams))
    return {spec.name: info for spec, info in zip(topology.streams, found, strict=True)}


def sources(info: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What a stream is filled from, as the server describes it."""
    return info.get("sources") or ()


async def _short(connection: Connection, topology: Topology, patience: float) -> Mapping[str, int]:
    """By how many messages each replica of the log is short, after time to catch up."""
    short: dict[str, int] = {}
    for look in range(_LOOKS):
        if look:
            await asyncio.sleep(_PAUSE)
        info = await api(connection, f"STREAM.INFO.{topology.log.name}", patience=patience)
        cluster, state = info.get("cluster") or {}, info["state"]
        servers = {cluster.get("leader"), *(each["name"] for each in cluster.get("replicas") or ())} - {None}
        offline = {each["name"] for each in cluster.get("replicas") or () if each.get("offline")}
        wanted = expected(info["config"], state)
        counts = await messages_by_replica(connection, topology.log.name, servers - offline, patience=patience)
        short = {server: max(0, wanted - count) for server, count in counts.items()}
        if not any(short.values()):
            break
    return short


def _is_behind(info: Mapping[str, Any] | None) -> bool:
    """Whether a stream is not where it should be, which may be a matter of a moment."""
    if info is None:
        return False
    if any(not replica.get("current") for replica in (info.get("cluster") or {}).get("replicas") or ()):
        return True
    return any(source.get("lag") or int(source["active"]) < 0 for source in sources(info))


async def _overdue(connection: Connection, topology: Topology, patience: float) -> tuple[int, float]:
    """How many timers have come due and were not dealt with, and for how many seconds the oldest."""
    due = f"{topology.namespace}.timers.due.>"
    try:
        first = await api(
            connection, f"STREAM.MSG.GET.{topology.timers.name}", {"seq": 1, "next_by_subj": due}, patience=patience
        )
    except ServerFault as fault:
        if fault.err_code == NO_MESSAGE:
            return 0, 0.0
        raise
    info = await api(connection, f"STREAM.INFO.{topology.timers.name}", {"subjects_filter": due}, patience=patience)
    waited = records.nanoseconds_of(info["ts"]) - records.nanoseconds_of(first["message"]["time"])
    return sum((info["state"].get("subjects") or {}).values()), waited / 1e9


async def _skew(connection: Connection, topology: Topology, patience: float) -> Skew:
    sent = time.time()
    info = await api(connection, f"STREAM.INFO.{topology.log.name}", patience=patience)
    received = time.time()
    return Skew(records.nanoseconds_of(info["ts"]) / 1e9 - (sent + received) / 2, (received - sent) / 2)
