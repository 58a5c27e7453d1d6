"""Everything a user of the log needs from NATS, opened and closed together.

Owns: the lifetimes of the connection and of the task that keeps clock and topology current. Invariant: once open, every
stream of the topology exists; once closed, no task of ours is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

from agentfield.fabric.deadletters import DeadLetters
from agentfield.fabric.jetstream import PATIENCE
from agentfield.fabric.log import Log
from agentfield.fabric.objects import Objects
from agentfield.fabric.personal.keys import Keys
from agentfield.fabric.timers import Timers
from agentfield.fabric.topology import Drift, Topology, provision
from agentfield.fabric.wire.connection import Connection
from agentfield.fabric.wire.recognising import Find
from agentfield.subject import Subjects


class Fabric:
    """A connection, and one namespace's topology, log, timers, objects, dead letters and keys; see :meth:`open`."""

    def __init__(self, connection: Connection, topology: Topology, log: Log, drifts: Sequence[Drift]) -> None:
        self.connection = connection
        self.topology = topology
        self.log = log
        self.drifts = tuple(drifts)
        self.timers = Timers(connection, topology, timeout=log.timeout)
        self.objects = Objects(connection, topology, timeout=log.timeout)
        self.deadletters = DeadLetters(log, topology)
        self.keys = Keys(log, topology)
        self.subjects = Subjects(topology.namespace)
        self.loop = asyncio.get_running_loop()
        self._follower: asyncio.Task[None] | None = None
        self._owned = AsyncExitStack()

    @classmethod
    async def open(
        cls,
        url: str | Sequence[str],
        *,
        namespace: str,
        name: str,
        connect_timeout: float = 5.0,
        timeout: float = PATIENCE,
        found: bool = True,
        find: Find | None = None,
    ) -> Fabric:
        """Connect, provide the streams, and start to follow the topology.

        From then on only a server that has this very log is used. ``timeout`` is how long one read or write may take,
        retries included (seconds); ``find`` as for :meth:`Connection.open`. Unless it may ``found`` the namespace, it
        creates nothing where that is not yet there: :class:`NotFoundError`. Raises
        :class:`UnavailableError`, :class:`AccessDeniedError`, :class:`IncompatibleServerError`; nothing is left open.
        """
        connection = await Connection.open(url, namespace=namespace, name=name, timeout=connect_timeout, find=find)
        try:
            topology = Topology(namespace)
            drifts = await provision(connection, topology, found=found)
            log = Log(connection, topology, timeout=timeout)
            await log.state()
            connection.know_by(log.proof())
            fabric = cls(connection, topology, log, drifts)
            await fabric.keys.policies.start()
        except BaseException:
            await connection.aclose()
            raise
        fabric._follower = asyncio.create_task(log.follow_topology(), name=f"agentfield topology {name}")
        return fabric

    def own(self, close: Callable[[], Awaitable[None]]) -> None:
        """Call ``close`` when the fabric closes, while its connection is still open."""
        self._owned.push_async_callback(close)

    async def aclose(self) -> None:
        """Close what is owned, flush and close. Idempotent."""
        await self._owned.aclose()
        await self.keys.aclose()
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
        await self.connection.aclose()
