"""Where events lie that a handler has given up on: the stream of dead letters, and the way to ask for one again.

Owns: the subjects of letters and of requests to replay one, and reading, counting and removing letters. Must not know:
what a letter says. A request is a message of the log, on a subject that the handler's own consumer hears. So it is as
durable as an event, comes to the one active instance and to whoever takes over from it, waits for an agent that is not
running, and costs nothing while nobody asks. Invariant: nothing here removes a letter but :meth:`DeadLetters.remove`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from agentfield.codec import Record
from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.fabric.faults import Fault, ServerFault, error_of
from agentfield.fabric.jetstream import api
from agentfield.fabric.leader import leader_get
from agentfield.fabric.log import Log
from agentfield.fabric.reader import Reader
from agentfield.fabric.topology import Topology
from agentfield.header import EVENT_ID, encode_event

_TOKENS = 4
"""Of a letter's subject: ``<namespace>.deadletters.<agent>.<handler>``."""


class DeadLetters:
    """The dead letters of one namespace. Whatever it asks raises :class:`UnavailableError` when no answer comes."""

    def __init__(self, log: Log, topology: Topology) -> None:
        self.stream = topology.deadletters.name
        self._log = log
        self._namespace = topology.namespace
        self._prefix = f"{topology.namespace}.deadletters."

    def requests(self, agent: str, handler: str) -> str:
        """The subject in the log on which a handler hears that it should handle a letter's event again."""
        return f"{self._namespace}.checks.replay.{agent}.{handler}"

    async def store(self, agent: str, handler: str, payload: bytes, *, letter_id: str) -> int:
        """Store a letter, however often it is tried with this id; return its number. Raises as ``Log.append``."""
        return (await self._log.append(f"{self._prefix}{agent}.{handler}", payload, {EVENT_ID: letter_id})).sequence

    async def ask_again(self, agent: str, handler: str, payload: bytes) -> int:
        """Ask the handler to handle a letter's event again; durable on return. The sequence of the request."""
        headers = encode_event(event_id=new_id(), operation="set", writer=Writer())
        return (await self._log.append(self.requests(agent, handler), payload, headers)).sequence

    async def get(self, number: int) -> Record | None:
        """The letter with this number; None if there is none (any more)."""
        if number < 1:
            return None
        doing = f"reading the dead letter {number}"
        record = await leader_get(
            self._log.connection, self.stream, {"seq": number}, doing=doing, patience=self._patience
        )
        return record if record is not None and record.subject.count(".") == _TOKENS - 1 else None

    async def all(self, agent: str = "*", handler: str = "*") -> AsyncIterator[Record]:
        """The letters there are, the oldest first, of one agent or handler if one is named."""
        state = await self._info()
        if not state["messages"]:
            return
        last = int(state["last_seq"])
        filters = [f"{self._prefix}{agent}.{handler}"]
        async with Reader(self._log.connection, self.stream, filters, patience=self._patience) as reader:
            async for record in reader.until(last):
                yield record

    async def counts(self) -> Mapping[tuple[str, str], int]:
        """How many letters there are of each agent and handler that has any."""
        state = await self._info({"subjects_filter": f"{self._prefix}*.*"})
        found: dict[tuple[str, str], int] = {}
        for subject, count in (state.get("subjects") or {}).items():
            agent, handler = subject.removeprefix(self._prefix).split(".")
            found[agent, handler] = count
        return found

    async def remove(self, number: int) -> bool:
        """Take a letter away for good; whether it was still there. Raises :class:`AccessDeniedError`, too."""
        subject = f"STREAM.MSG.DELETE.{self.stream}"
        try:
            await api(self._log.connection, subject, {"seq": number}, patience=self._patience)
        except Fault as fault:
            # For a message that is not there the server has the same code as where deleting is forbidden (10057).
            if isinstance(fault, ServerFault) and await self.get(number) is None:
                return False
            raise error_of(fault, f"removing the dead letter {number}") from None
        return True

    @property
    def _patience(self) -> float:
        return self._log.timeout

    async def _info(self, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            info = await api(self._log.connection, f"STREAM.INFO.{self.stream}", body, patience=self._patience)
        except Fault as fault:
            raise error_of(fault, f"asking for the state of {self.stream}") from None
        state: dict[str, Any] = info["state"]
        return state
