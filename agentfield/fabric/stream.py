"""A stream as its leader reports it: its state, when it was made, whether one server has it alone, and the clock there.

Owns: asking for that, keeping it current, and what a server proves by that it has this very stream. Must not know: what
is in it. Invariants: what is noted here is the leader's word, at most as old as the last look; of the server's time,
both bounds hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import orjson

from agentfield.errors import AccessDeniedError, UnavailableError
from agentfield.fabric import records
from agentfield.fabric.clock import ServerClock
from agentfield.fabric.faults import Fault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import API, PATIENCE, api
from agentfield.fabric.topology import thaw_if_left
from agentfield.fabric.trimmed import Holding, holding
from agentfield.fabric.wire.connection import Connection, ConnectionState
from agentfield.fabric.wire.recognising import Proof

logger = logging.getLogger("agentfield.log")


class Stream:
    """One stream, over one connection. Making one does no I/O."""

    def __init__(self, connection: Connection, name: str, *, timeout: float = PATIENCE) -> None:
        self.connection = connection
        self.stream = name
        self.timeout = timeout
        self.alone = False
        """Whether one server has the log and no other can answer for it. In a cluster it is never so, whatever the
        number of replicas at the moment: a server that was one of them goes on answering direct gets until it has
        learnt that it is none any more, and what it says then is stale."""
        self.last_known = 0
        """The log's last sequence when its state was last asked for."""
        self.created = 0
        """When the server made the stream: nanoseconds since the epoch; 0 as long as its state was not asked for."""
        self.held = Holding(1, 0)
        """What the log held when its state was last asked for."""
        self.info: Mapping[str, Any] = {}
        """What the server said of the stream then."""
        self._clock = ServerClock()
        self._refresh = asyncio.Event()

    async def state(self) -> dict[str, Any]:
        """The stream's state as its leader reports it (``first_seq``, ``last_seq``, ``messages``, …).

        ``first_seq`` is the first sequence from which on nothing is missing. Also takes note of whether its server
        stands alone, of when it was made, and of the server's clock.
        """
        loop = asyncio.get_running_loop()
        sent = loop.time()
        try:
            info = await api(self.connection, f"STREAM.INFO.{self.stream}", patience=self.timeout)
        except Fault as fault:
            raise error_of(fault, f"asking for the state of {self.stream}") from None
        self.alone = "name" not in (info.get("cluster") or {})
        self.created = records.nanoseconds_of(info["created"])
        self._clock.observe(sent, records.nanoseconds_of(info["ts"]), loop.time())
        state: dict[str, Any] = dict(info["state"])
        self.last_known = int(state["last_seq"])
        self.info, self.held = info, holding(info["config"], state)
        state["first_seq"] = max(int(state["first_seq"]), self.held.complete if state["last_seq"] else 0)
        await thaw_if_left(self.connection, info)
        return state

    def is_same_as(self, other: Stream) -> bool:
        """Whether both are the same log, over whatever connections."""
        return (self.stream, self.created) == (other.stream, other.created)

    def proof(self) -> Proof:
        """What a server proves by that it has this very log, whose state must have been asked for."""
        created = self.created

        def is_right(answer: bytes) -> bool | None:
            try:
                info = orjson.loads(answer)
            except orjson.JSONDecodeError:  # the status that nobody answers
                return None
            if "error" in info:
                return False if ServerFault.of(info["error"]).verdict is Verdict.ABSENT else None
            return records.nanoseconds_of(info["created"]) == created

        return Proof(f"{API}.STREAM.INFO.{self.stream}", is_right)

    def now(self) -> int:
        """The server's time in nanoseconds since the epoch, to about half a round trip, whatever our clock says."""
        return self._clock.now(asyncio.get_running_loop().time())

    def now_at_most(self) -> int:
        """A time that the server has surely not passed."""
        return self._clock.latest(asyncio.get_running_loop().time())

    def now_at_least(self) -> int:
        """A time that the server has surely reached: for what must not happen too early."""
        return self._clock.earliest(asyncio.get_running_loop().time())

    async def follow_topology(self, interval: float = 10.0) -> None:
        """Keep current whether the server stands alone, and the clock, until cancelled. Owned by the fabric.

        Looks after every reconnect, and every ``interval`` seconds.
        """

        def changed(state: ConnectionState) -> None:
            if state == "connected":
                self._refresh.set()

        forget = self.connection.on_state(changed)
        try:
            while True:
                try:
                    async with asyncio.timeout(interval):
                        await self._refresh.wait()
                except TimeoutError:
                    pass
                self._refresh.clear()
                try:
                    await self.state()
                except (UnavailableError, AccessDeniedError) as error:
                    logger.debug("%s", error)
        finally:
            forget()
