"""Reading what agents noted: the stream of notes, followed from its end or from its start."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agentfield.cli.output import moment
from agentfield.codec import Record
from agentfield.errors import InvalidInputError
from agentfield.execution import Execution, from_headers
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.faults import Fault, error_of
from agentfield.fabric.jetstream import api
from agentfield.fabric.reader import Reader

logger = logging.getLogger("agentfield.cli")


@dataclass(frozen=True, slots=True)
class Note:
    """One note, as the stream holds it."""

    agent: str
    text: str
    tags: tuple[str, ...]
    timestamp: datetime
    """When the server stored it."""
    execution: Execution | None

    @classmethod
    def of(cls, record: Record) -> Note:
        """Decodes a message of the stream. Raises ValueError if it is no note."""
        body = json.loads(record.payload)
        try:
            return cls(
                agent=str(body["agent"]),
                text=str(body["text"]),
                tags=tuple(str(tag) for tag in body["tags"]),
                timestamp=datetime.fromtimestamp(record.timestamp / 1e9, UTC),
                execution=from_headers(record.headers),
            )
        except (TypeError, LookupError, InvalidInputError) as error:
            raise ValueError(f"it is not what an agent writes: {error!r}") from None

    def fields(self) -> dict[str, Any]:
        """The note as JSON; it is told from an event by its field ``note``."""
        execution = self.execution
        return {
            "note": self.text,
            "tags": self.tags,
            "agent": self.agent,
            "timestamp": moment(self.timestamp),
            "execution_id": execution and execution.execution_id,
            "workflow_id": execution and execution.workflow_id,
            "session_id": execution and execution.session_id,
        }


async def follow_notes(fabric: Fabric, *, from_start: bool, ready: Callable[[], None]) -> AsyncIterator[Note]:
    """Notes without end: those to come, after all the past ones if ``from_start``.

    ``ready`` is called as soon as no later note can be missed. Raises :class:`UnavailableError`.
    """
    connection, stream = fabric.connection, fabric.topology.notes.name
    try:
        info = await api(connection, f"STREAM.INFO.{stream}", patience=fabric.log.timeout)
    except Fault as fault:
        raise error_of(fault, f"asking for the state of {stream}") from None
    start = 1 if from_start else int(info["state"]["last_seq"]) + 1
    async with Reader(connection, stream, [f"{connection.namespace}.notes.>"], start=start) as reader:
        ready()
        async for record in reader.follow():
            try:
                note = Note.of(record)
            except ValueError as error:
                logger.warning("message %d of %s is skipped: %s", record.sequence, stream, error)
            else:
                yield note
