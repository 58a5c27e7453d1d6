"""One message of a stream, as its leader has it.

Invariant: None means that there is no such message; whoever could not be asked raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentfield.codec import Record
from agentfield.fabric import records
from agentfield.fabric.faults import NO_MESSAGE, Fault, ServerFault, error_of
from agentfield.fabric.jetstream import PATIENCE, api
from agentfield.fabric.wire.connection import Connection


async def leader_get(
    connection: Connection, stream: str, body: Mapping[str, Any], *, doing: str, patience: float = PATIENCE
) -> Record | None:
    """The one message that this request (``STREAM.MSG.GET``, ADR-1) means; None if there is none.

    Raises :class:`UnavailableError` (no answer for ``patience`` seconds; no such stream), :class:`AccessDeniedError`;
    ``doing`` says in them what for.
    """
    try:
        answer = await api(connection, f"STREAM.MSG.GET.{stream}", body, patience=patience)
    except Fault as fault:
        if isinstance(fault, ServerFault) and fault.err_code == NO_MESSAGE:
            return None
        raise error_of(fault, doing) from None
    return records.of_leader(answer["message"])
