"""A slice: the events of a stream that match some filters, and what the stream's leader says of them.

Owns: asking it. Must not know: who delivers the events, which have come. Invariant: of a slice nothing is said to be
left out on the word of a replica that may be behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from agentfield.errors import NotFoundError
from agentfield.fabric.faults import NO_MESSAGE, Fault, ServerFault, error_of
from agentfield.fabric.jetstream import api
from agentfield.fabric.wire.connection import Connection


class Slice:
    """What of ``stream`` matches ``filters``; everything if there are none."""

    def __init__(self, connection: Connection, stream: str, filters: Sequence[str], *, patience: float) -> None:
        self.connection = connection
        self.stream = stream
        self.filters = list(filters)
        self.patience = patience

    async def ask(
        self, subject: str, body: Mapping[str, Any] | None = None, patience: float | None = None
    ) -> dict[str, Any]:
        """The answer to a request of the JetStream API. Raises :class:`NotFoundError` where there is no such event."""
        try:
            return await api(self.connection, subject, body, patience=self.patience if patience is None else patience)
        except Fault as fault:
            if isinstance(fault, ServerFault) and fault.err_code == NO_MESSAGE:
                raise NotFoundError(str(fault)) from None
            raise error_of(fault, f"reading {self.stream}") from None

    async def info(self) -> dict[str, Any]:
        """What the leader says of the stream."""
        return await self.ask(f"STREAM.INFO.{self.stream}")

    async def first(self, start: int) -> int | None:
        """The first sequence from ``start`` on that matches, by the word of the stream's leader."""
        answers = await asyncio.gather(*(self._first(subject, start) for subject in self.filters or [">"]))
        return min((sequence for sequence in answers if sequence is not None), default=None)

    async def nothing_left(self, start: int, stop: int) -> bool:
        """Whether no event matches from sequence ``start`` to ``stop``, by the word of the stream's leader.

        A lone server is its own leader.
        """
        if not self.connection.clustered:
            return True
        first = await self.first(start)
        return first is None or first > stop

    async def _first(self, subject: str, start: int) -> int | None:
        try:
            answer = await self.ask(f"STREAM.MSG.GET.{self.stream}", {"seq": start, "next_by_subj": subject})
        except NotFoundError:
            return None
        return int(answer["message"]["seq"])
