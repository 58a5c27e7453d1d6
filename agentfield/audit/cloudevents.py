"""Events as CloudEvents 1.0 in JSON, one a line, for systems that take them.

Owns: which attribute says what. Source: the CloudEvents specification, version 1.0.2, its JSON event format, and its
extensions for distributed tracing and sequence.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import orjson

from agentfield.audit.jsonl import time_text
from agentfield.event import Event

_WRITER = ("agent", "execution_id", "workflow_id", "session_id", "cause")


def cloud_event_line(event: Event, namespace: str, timestamp: int) -> bytes:
    """The event, its time exact to the nanosecond."""
    fields: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": f"/agentfield/{namespace}/{event.scope}/{quote(event.scope_id, safe='')}",
        "type": f"agentfield.memory.{event.operation}",
        "subject": event.key,
        "time": time_text(timestamp),
        "sequence": str(event.revision),
        "scope": event.scope,
        "scopeid": event.scope_id,
    }
    for name in _WRITER:  # the names of extensions are lower-case letters and digits alone
        value = getattr(event.writer, name)
        if value is not None:
            fields[name.replace("_", "")] = value
    if event.writer.trace is not None:
        fields["traceparent"] = event.writer.trace
    if event.reason is not None:
        fields["reason"] = event.reason
    if event.erased:
        fields["erased"] = True
    elif event.operation == "set":
        fields |= {"datacontenttype": "application/json", "data": event.data}
    return orjson.dumps(fields) + b"\n"
