"""The discovery half of the NATS micro service protocol (ADR-32): being found, and finding.

Owns: the answers to ``$SRV.PING``, ``$SRV.INFO`` and ``$SRV.STATS`` for one service instance, so that any NATS tool
(``nats micro ls``) lists agents, and the question who serves a name. Must not know: what an endpoint does. The stock
``nats.micro`` is not used because stopping it drops requests that were already delivered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from agentfield.execution import new_id
from agentfield.fabric.faults import NoAnswerFault, NoRespondersFault
from agentfield.fabric.wire.connection import Connection
from agentfield.fabric.wire.message import Message
from agentfield.fabric.wire.subscription import Subscription

QUEUE = "q"
"""The queue group that ADR-32 names; instances of one service share its requests through it."""
NAMESPACE = "namespace"
"""The metadata field that says which namespace an agent lives in: all namespaces of an account answer to ``$SRV``."""
HANDLERS = "handlers"
"""The metadata field that names the handlers which an instance runs, with a space between them."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One thing a service does, as it is announced."""

    name: str
    subject: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class EndpointStats:
    """What happened at one endpoint since the instance started. Times in nanoseconds."""

    requests: int = 0
    errors: int = 0
    last_error: str = ""
    processing_time: int = 0

    def count(self, elapsed: int, error: str | None) -> None:
        """Record one finished request."""
        self.processing_time += elapsed
        if error is not None:
            self.errors += 1
            self.last_error = error


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """A service instance that answered."""

    name: str
    id: str
    version: str
    description: str
    metadata: Mapping[str, str]
    endpoints: tuple[Endpoint, ...]

    @property
    def handlers(self) -> frozenset[str] | None:
        """The handlers that the instance runs; None if it does not say."""
        names = self.metadata.get(HANDLERS)
        return None if names is None else frozenset(names.split())

    @classmethod
    def parse(cls, payload: bytes) -> ServiceInfo | None:
        """Read an INFO answer; None for what is not one (anybody may answer on ``$SRV``)."""
        try:
            info: Any = json.loads(payload)
            return cls(
                name=str(info["name"]),
                id=str(info["id"]),
                version=str(info["version"]),
                description=str(info.get("description") or ""),
                metadata=dict(info.get("metadata") or {}),
                endpoints=tuple(
                    Endpoint(str(each["name"]), str(each["subject"]), dict(each.get("metadata") or {}))
                    for each in info.get("endpoints") or ()
                ),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


class Monitor:
    """Answers the three discovery verbs for one service instance between :meth:`start` and :meth:`stop`."""

    def __init__(
        self,
        connection: Connection,
        *,
        name: str,
        version: str,
        description: str,
        endpoints: Sequence[Endpoint],
        handlers: Sequence[str] = (),
    ) -> None:
        self.id = new_id()
        self._connection = connection
        self._identity = {
            "name": name,
            "id": self.id,
            "version": version,
            "metadata": {NAMESPACE: connection.namespace, HANDLERS: " ".join(handlers)},
        }
        self._description = description
        self._endpoints = endpoints
        self._started = datetime.now(UTC)
        self._subscriptions: list[Subscription] = []
        self.stats = {endpoint.name: EndpointStats() for endpoint in endpoints}

    async def start(self) -> None:
        """Become discoverable."""
        for verb, answer in (("PING", self._ping), ("INFO", self._info), ("STATS", self._stats)):

            async def respond(message: Message, answer: Any = answer) -> None:
                if message.reply:
                    await self._connection.publish(message.reply, json.dumps(answer()).encode())

            for suffix in ("", f".{self._identity['name']}", f".{self._identity['name']}.{self.id}"):
                self._subscriptions.append(await self._connection.subscribe(f"$SRV.{verb}{suffix}", respond))

    async def stop(self) -> None:
        """No longer be discoverable."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.unsubscribe()

    def _ping(self) -> dict[str, Any]:
        return {"type": "io.nats.micro.v1.ping_response", **self._identity}

    def _info(self) -> dict[str, Any]:
        return {
            "type": "io.nats.micro.v1.info_response",
            **self._identity,
            "description": self._description,
            "endpoints": [
                {"name": each.name, "subject": each.subject, "queue_group": QUEUE, "metadata": dict(each.metadata)}
                for each in self._endpoints
            ],
        }

    def _stats(self) -> dict[str, Any]:
        return {
            "type": "io.nats.micro.v1.stats_response",
            **self._identity,
            "started": self._started.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "endpoints": [self._endpoint_stats(each) for each in self._endpoints],
        }

    def _endpoint_stats(self, endpoint: Endpoint) -> dict[str, Any]:
        stats = self.stats[endpoint.name]
        return {
            "name": endpoint.name,
            "subject": endpoint.subject,
            "queue_group": QUEUE,
            "num_requests": stats.requests,
            "num_errors": stats.errors,
            "last_error": stats.last_error,
            "processing_time": stats.processing_time,
            "average_processing_time": stats.processing_time // max(stats.requests, 1),
            "data": None,  # optional in ADR-32, but stock readers ask for it
        }


async def find(connection: Connection, name: str, *, timeout: float) -> ServiceInfo | None:
    """The first instance of the service ``name`` in this connection's namespace to answer, or None.

    At once when nobody in the account has the name; within ``timeout`` seconds when only other namespaces do.
    """

    def ours(message: Message) -> bool:
        info = ServiceInfo.parse(message.payload)
        return info is not None and info.metadata.get(NAMESPACE) == connection.namespace

    try:
        answers = await connection.request_many(f"$SRV.INFO.{name}", timeout=timeout, last=ours)
    except (NoRespondersFault, NoAnswerFault):
        return None
    return ServiceInfo.parse(answers[-1].payload)


async def find_all(connection: Connection, *, name: str = "", wait: float = 0.5) -> list[ServiceInfo]:
    """Every instance in this connection's namespace that answers within ``wait`` seconds, sorted by name and id."""
    found: dict[str, ServiceInfo] = {}
    nobody = asyncio.Event()

    async def collect(message: Message) -> None:
        info = ServiceInfo.parse(message.payload)
        if message.status == 503:
            nobody.set()
        elif info is not None and info.metadata.get(NAMESPACE) == connection.namespace:
            found[info.id] = info

    inbox = f"_INBOX.{new_id()}"
    subscription = await connection.subscribe(inbox, collect)
    try:
        await connection.publish(f"$SRV.INFO.{name}" if name else "$SRV.INFO", reply=inbox)
        async with asyncio.timeout(wait):
            await nobody.wait()
    except TimeoutError:
        pass  # the time to answer is over: that is the normal end
    finally:
        await subscription.unsubscribe()
    return sorted(found.values(), key=lambda info: (info.name, info.id))
