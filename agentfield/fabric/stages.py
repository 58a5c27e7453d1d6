"""Stages: namespaces that are there for one run, and the end of those whose run did not live to remove them.

Owns: their names, the sign of life that a run leaves on its stage, and the proof that nobody uses one any more. Must
not know: what happens there. Invariants: what is removed has the name of a stage and its sign, or nothing in its log at
all; and nothing has happened there for so long, by the server's own clock, that its run is dead, or cut off.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

from agentfield.errors import AgentFieldError
from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.faults import Fault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import api
from agentfield.fabric.records import nanoseconds_of
from agentfield.fabric.removal import remove
from agentfield.fabric.topology import Topology, nanoseconds, stream_names
from agentfield.fabric.wire.connection import Connection
from agentfield.header import encode_event

logger = logging.getLogger("agentfield.stages")

ABANDONED: Final = timedelta(minutes=10)
"""A stage on which nothing has happened for so long is nobody's any more: its run would have given a sign of life."""
_SIGN_EVERY: Final = timedelta(minutes=1)
_STAGE: Final = re.compile(r"replay-[0-9a-f]{16}")


def stage_name() -> str:
    """A namespace for one run, that no other has."""
    return f"replay-{secrets.token_hex(8)}"


class Presence:
    """Signs of life on a stage, inside ``async with``: the first when it is entered, then one a minute."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Give the first sign. Raises :class:`UnavailableError`."""
        await self._sign()
        self._task = asyncio.create_task(self._go_on(), name="agentfield signs of life")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(_SIGN_EVERY.total_seconds())
            try:
                await self._sign()
            except AgentFieldError as error:
                logger.debug("no sign of life could be left in %s: %s", self._fabric.topology.namespace, error)

    async def _sign(self) -> None:
        headers = encode_event(event_id=new_id(), operation="set", writer=Writer())
        await self._fabric.log.append(_sign_of(self._fabric.topology.namespace), b"null", headers)


async def remove_abandoned(connection: Connection, after: timedelta = ABANDONED) -> list[str]:
    """Remove the stages whose runs did not live to do it, and return their names. Safe for any number of processes.

    Raises :class:`UnavailableError` and its kin; what is left then goes another time.
    """
    try:
        streams = await stream_names(connection)
        logs = {Topology(name).log.name: name for stream in streams for name in _STAGE.findall(stream.lower())}
        left = [logs[log] for log in sorted(logs.keys() & set(streams)) if await _is_left(connection, logs[log], after)]
    except Fault as fault:
        raise error_of(fault, "looking for what interrupted replays have left") from None
    for name in left:
        await remove(connection, name)
        logger.info("removed namespace %s, which a replay that was killed had left", name)
    return left


async def _is_left(connection: Connection, namespace: str, after: timedelta) -> bool:
    log = Topology(namespace).log.name
    try:
        info = await api(connection, f"STREAM.INFO.{log}")
        state = info["state"]
        last = max(nanoseconds_of(info["created"]), nanoseconds_of(state["last_ts"]) if state["last_seq"] else 0)
        if nanoseconds_of(info["ts"]) - last < nanoseconds(after):
            return False
        if not state["last_seq"]:
            return not state["consumer_count"]  # its run died before it could give a sign
        await api(connection, f"STREAM.MSG.GET.{log}", {"last_by_subj": _sign_of(namespace)})
    except ServerFault as fault:
        if fault.verdict is Verdict.ABSENT:
            return False  # it has just been removed, or is somebody's who likes the name
        raise
    return True


def _sign_of(namespace: str) -> str:
    return f"{namespace}.checks.stage"
