"""Every stream and bucket, as one table; and making the server match it.

Owns: names, configuration and purpose of what exists on the server, the only place that may assume one log stream per
namespace. Whoever connects first creates what is missing; creation is idempotent on the server, so any number of
processes may race. What exists with another configuration is reported as drift and left alone, except for the number
of replicas, which follows the cluster (one on a single server, three as soon as there are three).
Invariant: nothing here can delete or purge the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from agentfield.errors import AccessDeniedError, AgentFieldError, NotFoundError, UnavailableError
from agentfield.fabric.faults import Fault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import api
from agentfield.fabric.records import nanoseconds_of
from agentfield.fabric.trimmed import frozen_since, is_frozen, thawed
from agentfield.fabric.wire.connection import Connection
from agentfield.scope import RESOLUTION

logger = logging.getLogger("agentfield.topology")

REPLICAS = 3
"""Replicas of every stream wherever the cluster has that many servers: survives the loss of one."""
DUPLICATE_WINDOW = timedelta(minutes=2)
"""How long the server recognises a repeated event id; a retry of a write must come within it."""
LEFT_FROZEN = timedelta(minutes=1)
"""After this time, nobody is still trimming a log that is frozen: whoever did has died, and others thaw it."""
NOTES_KEPT = timedelta(days=30)
_LOG = "_MEMORY"
_SHOWN = 5
"""Other namespaces that an error names."""
_PATIENCE_WITH_NAMES = 2.0
"""Seconds for a look at what other namespaces there are, which may be forbidden."""


def nanoseconds(span: timedelta) -> int:
    """The span as the server counts it."""
    return int(span.total_seconds() * 1_000_000_000)


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One stream as it should be: the fields of its configuration that matter, under the server's names."""

    name: str
    purpose: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Drift:
    """A field of a stream that differs from the table."""

    stream: str
    field: str
    found: object
    wanted: object

    def __str__(self) -> str:
        return f"stream {self.stream}: {self.field} is {self.found!r}, the table says {self.wanted!r}"


@dataclass(frozen=True)
class Topology:
    """The table for one namespace."""

    namespace: str
    log: StreamSpec = field(init=False)
    buckets: tuple[StreamSpec, ...] = field(init=False)
    timers: StreamSpec = field(init=False)
    notes: StreamSpec = field(init=False)
    deadletters: StreamSpec = field(init=False)
    objects: StreamSpec = field(init=False)
    seals: StreamSpec = field(init=False)
    keys: StreamSpec = field(init=False)

    def __post_init__(self) -> None:
        ns, upper = self.namespace, self.namespace.upper()
        log = StreamSpec(
            f"{upper}{_LOG}",
            "the log: every write, for ever",
            _config(
                subjects=[f"{ns}.memory.>", f"{ns}.locks.>", f"{ns}.checks.>"],
                deny_delete=True,
                deny_purge=True,
                max_age=0,  # no limit of any kind: the server would erase history to keep it
                max_bytes=-1,
                max_msgs=-1,
                max_msgs_per_subject=-1,
                discard="new",
                allow_direct=True,
                allow_atomic=True,
                duplicate_window=nanoseconds(DUPLICATE_WINDOW),
                compression="s2",
            ),
        )
        buckets = tuple(
            StreamSpec(
                f"KV_{ns}-{kind}",
                f"current values of the {kind} scope, filled by the server from the log, readable as a KV bucket",
                _config(
                    sources=[
                        {
                            "name": log.name,
                            "subject_transforms": [
                                {"src": f"{ns}.memory.{kind}.{tail}", "dest": f"$KV.{ns}-{kind}.>"},
                            ],
                        }
                    ],
                    max_msgs_per_subject=1,
                    discard="new",
                    deny_delete=True,
                    allow_rollup_hdrs=True,
                    allow_direct=True,
                    compression="s2",
                ),
            )
            for kind in RESOLUTION
            for tail in ("global.>" if kind == "global" else ">",)
        )
        rest = {
            "timers": StreamSpec(
                f"{upper}_TIMERS",
                "schedules of expiries, and the due messages they emit",
                _config(
                    subjects=[f"{ns}.timers.>"],
                    retention="workqueue",  # a due message is gone once a worker has acknowledged it
                    allow_msg_schedules=True,
                    allow_msg_ttl=True,
                    allow_direct=True,
                ),
            ),
            "notes": StreamSpec(
                f"{upper}_NOTES",
                "what agents note about their work, kept for 30 days",
                _config(
                    subjects=[f"{ns}.notes.>"], max_age=nanoseconds(NOTES_KEPT), allow_direct=True, compression="s2"
                ),
            ),
            "deadletters": StreamSpec(
                f"{upper}_DEADLETTERS",
                "events that a handler failed on for good, until replayed or dropped",
                _config(subjects=[f"{ns}.deadletters.>"], allow_direct=True),
            ),
            "objects": StreamSpec(
                f"OBJ_{self.objects_bucket}",
                "values too large for an event, in chunks, readable as an object store",
                _config(
                    subjects=[f"$O.{self.objects_bucket}.C.>", f"$O.{self.objects_bucket}.M.>"],
                    discard="new",
                    allow_rollup_hdrs=True,  # a description replaces the one before it (ADR-20)
                    allow_direct=True,
                    duplicate_window=nanoseconds(DUPLICATE_WINDOW),
                    compression="s2",
                ),
            ),
            "seals": StreamSpec(
                f"{upper}_SEALS",
                "signed statements of what the log holds, by which it can be audited",
                _config(
                    subjects=[f"{ns}.seals.seal"],
                    deny_delete=True,
                    deny_purge=True,
                    discard="new",
                    allow_direct=True,
                    compression="s2",
                ),
            ),
            "keys": StreamSpec(
                f"KV_{self.keys_bucket}",
                "the policy on personal data, and the keys that it is encrypted with until they are destroyed",
                # A message that is deleted is overwritten on disk, one that is purged or replaced is not, so neither
                # is possible here. No direct gets: a replica that is behind would take keys for destroyed.
                _config(
                    subjects=[f"$KV.{self.keys_bucket}.>"],
                    max_msgs_per_subject=1,
                    discard="new",
                    discard_new_per_subject=True,
                    deny_purge=True,
                ),
            ),
        }
        for name, value in {"log": log, "buckets": buckets, **rest}.items():
            object.__setattr__(self, name, value)

    @property
    def streams(self) -> tuple[StreamSpec, ...]:
        """Every stream, the log first: buckets source it, so it has to exist before they do."""
        return (self.log, *self.buckets, self.timers, self.notes, self.deadletters, self.objects, self.seals, self.keys)

    @property
    def keys_bucket(self) -> str:
        """The bucket of the policy and the keys of personal data, as clients know it."""
        return f"{self.namespace}-keys"

    @property
    def objects_bucket(self) -> str:
        """The object store's name, as clients know it."""
        return f"{self.namespace}-objects"


def _config(**fields: Any) -> Mapping[str, Any]:
    return MappingProxyType({"storage": "file", "retention": "limits"} | fields)


async def provision(
    connection: Connection, topology: Topology, *, found: bool = True, patience: float = 20.0
) -> list[Drift]:
    """Create what is missing, let replicas follow the cluster, and return how the rest differs from the table.

    Unless it may ``found`` the namespace: then :class:`NotFoundError` if there is no log, and nothing is created. Safe
    to run from any number of processes at once. Raises :class:`UnavailableError` or :class:`IncompatibleServerError`
    when the server cannot provide the streams within ``patience`` seconds.
    """
    try:
        there = await asyncio.gather(*(_look(connection, spec.name, patience) for spec in topology.streams))
        if there[0] is not None and is_frozen(there[0]):
            await thaw_if_left(connection, await api(connection, f"STREAM.INFO.{topology.log.name}", patience=patience))
            there[0] = await _look(connection, topology.log.name, patience)
        if there[0] is None:
            await _check_new(connection, topology, patience)
            if not found:
                raise await _missing(connection, topology)
        drifts: list[Drift] = []
        for spec, existing in zip(topology.streams, there, strict=True):
            config = existing if existing is not None else await _create(connection, spec, patience)
            drifts.extend(compare(spec, await _follow_cluster(connection, config)))
    except Fault as fault:
        raise error_of(fault, f"preparing the streams of namespace {topology.namespace!r}") from None
    for drift in drifts:
        logger.warning("%s; left as it is", drift)
    return drifts


async def _check_new(connection: Connection, topology: Topology, patience: float) -> None:
    """Raise if the log is gone: an empty one in its place would hide that, and be taken for the truth.

    A server that cannot read a stream's files goes on without that stream, and says so in its own log alone.
    """
    for spec in topology.buckets:
        try:
            state = (await api(connection, f"STREAM.INFO.{spec.name}", patience=patience))["state"]
        except ServerFault as fault:
            if fault.verdict is Verdict.ABSENT:
                continue
            raise
        if state["last_seq"]:
            if await _look(connection, topology.log.name, patience) is not None:
                return  # somebody else made it just now, and has used it already
            raise UnavailableError(
                f"the log {topology.log.name} is not there, but {spec.name}, which is filled from it, is: the server "
                f"could not load the log (its own log says why), or somebody deleted it. Nothing was created: restore "
                f"the server's data from a backup or, to begin anew, delete every stream of namespace "
                f"{topology.namespace!r}"
            )


async def _missing(connection: Connection, topology: Topology) -> NotFoundError:
    """That there is no such namespace, and which there are, if that can be found out."""
    others: list[str] = []
    with suppress(Fault, AgentFieldError):
        others = await _namespaces(connection)
    shown = ", ".join(map(repr, others[:_SHOWN])) + (", …" if len(others) > _SHOWN else "")
    there = f"the server has {shown}" if others else "the server has none yet"
    return NotFoundError(
        f"there is no namespace {topology.namespace!r} at {connection.url}: nobody has written or served an agent in "
        f"it, which would make it; {there}"
    )


async def _namespaces(connection: Connection) -> list[str]:
    """The namespaces that the server has, by their logs."""
    names = await stream_names(connection)
    logs = {name.removesuffix(_LOG).lower() for name in names if name.endswith(_LOG)}
    return sorted(name for name in logs if f"KV_{name}-global" in names)


async def stream_names(connection: Connection) -> list[str]:
    """All the streams that the server has. Raises the faults themselves; to look may be forbidden."""
    names: list[str] = []
    while True:
        page = await api(connection, "STREAM.NAMES", {"offset": len(names)}, patience=_PATIENCE_WITH_NAMES)
        names += page.get("streams") or ()
        if len(names) >= page["total"] or not page.get("streams"):
            return names


def compare(spec: StreamSpec, config: Mapping[str, Any]) -> list[Drift]:
    """How a stream's configuration differs from the table, in the fields that the table names."""
    return [
        Drift(spec.name, name, config.get(name), wanted)
        for name, wanted in spec.config.items()
        if _plain(config.get(name)) != _plain(wanted)
    ]


def _plain(value: Any) -> Any:
    """Drop what the server adds to sources and what it omits for false or zero."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item}
    return value or None


async def thaw_if_left(connection: Connection, info: Mapping[str, Any]) -> None:
    """If whoever trimmed the log has died while it was frozen, let it be written to again."""
    config = info["config"]
    if not is_frozen(config) or nanoseconds_of(info["ts"]) < frozen_since(config) + nanoseconds(LEFT_FROZEN):
        return
    try:
        await api(connection, f"STREAM.UPDATE.{config['name']}", thawed(config, info["state"]))
        logger.warning("the log %s was left frozen by whoever trimmed it; it takes writes again", config["name"])
    except (Fault, AccessDeniedError, UnavailableError) as fault:
        logger.warning("the log %s was left frozen by whoever trimmed it: %s", config["name"], fault)


async def _look(connection: Connection, name: str, patience: float) -> dict[str, Any] | None:
    try:
        config: dict[str, Any] = (await api(connection, f"STREAM.INFO.{name}", patience=patience))["config"]
    except ServerFault as fault:
        if fault.verdict is Verdict.ABSENT:
            return None
        raise
    return config


async def _create(connection: Connection, spec: StreamSpec, patience: float) -> dict[str, Any]:
    for replicas in (REPLICAS, 1) if connection.clustered else (1,):
        body = {
            "name": spec.name,
            "description": spec.purpose,
            "num_replicas": replicas,
            **spec.config,
        }
        try:
            answer = await api(connection, f"STREAM.CREATE.{spec.name}", body, patience=patience)
        except ServerFault as fault:
            if fault.verdict is Verdict.NO_PEERS and replicas > 1:
                continue
            if fault.verdict is not Verdict.EXISTS:
                raise
            existing = await _look(connection, spec.name, patience)  # another process of another version was first
            if existing is None:
                raise
            return existing
        config: dict[str, Any] = answer["config"]
        logger.info("created stream %s (%s; replicas %d)", spec.name, spec.purpose, replicas)
        return config
    raise AssertionError("unreachable: one replica is always tried last")


async def _follow_cluster(connection: Connection, config: dict[str, Any]) -> dict[str, Any]:
    """Raise a stream from one replica to three where the cluster can; permissions may forbid it to an agent."""
    if not connection.clustered or config.get("num_replicas", 1) >= REPLICAS:
        return config
    wanted = {**config, "num_replicas": REPLICAS}
    try:
        raised: dict[str, Any] = (await api(connection, f"STREAM.UPDATE.{config['name']}", wanted, patience=5.0))[
            "config"
        ]
    except (Fault, AccessDeniedError, UnavailableError) as fault:
        logger.debug("stream %s stays at %d replica(s): %s", config["name"], config.get("num_replicas", 1), fault)
        return config
    logger.info("stream %s now has %d replicas", config["name"], REPLICAS)
    return raised
