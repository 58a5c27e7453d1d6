"""What a log means: its events, each with what its key held before, and the entries that are left at a time."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import orjson

from agentfield.codec import Record, decode_entry, decode_event, encrypted_by
from agentfield.envelope import DataKey, open_up
from agentfield.errors import DecodeError, InvalidInputError
from agentfield.header import EVENT_ID
from agentfield.memory.state import is_live
from agentfield.schema import Schemas
from agentfield.subject import Subjects

_LARGE = 10_000


def fold(
    messages: Iterable[Record],
    namespace: str,
    at: int,
    schemas: Schemas | None = None,
    keys: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The events, and the entries at a time (nanoseconds), as plain JSON values.

    What is no event of a key (locks, checks, what others put there) is named with what makes it none. ``keys`` are
    those that are left of the data keys, in base64 by their fingerprints: what is encrypted with another one is erased.
    """
    subjects = Subjects(namespace)
    last: dict[str, Record] = {}
    events: list[dict[str, Any]] = []
    for record in messages:
        try:
            subjects.parse(record.subject)
            encryption = encrypted_by(record)
            if encryption is not None:
                record = _opened(record, keys.get(encryption.key))
            event = decode_event(record, subjects, last.get(record.subject), schemas=schemas)
        except (DecodeError, InvalidInputError) as error:
            events.append({"revision": record.sequence, "subject": record.subject, "no event": type(error).__name__})
        else:
            fields = _briefly(event.model_dump(mode="json"))
            events.append(fields if encryption is None else fields | {"encrypted": encryption.per})
            last[record.subject] = record
    live = [record for record in last.values() if is_live(record, at)]
    state = [_briefly(decode_entry(record, subjects, schemas=schemas).model_dump(mode="json")) for record in live]
    return events, sorted(state, key=lambda entry: entry["revision"])


def _opened(record: Record, key: str | None) -> Record:
    if key is None:
        return record._replace(erased=True)
    envelope = record.payload if record.content is None else record.content
    data_key = DataKey.of(b64decode(key))
    return record._replace(content=open_up(data_key, envelope, record.subject, record.headers[EVENT_ID]))


def _briefly(fields: dict[str, Any]) -> dict[str, Any]:
    """The same, with what is large named by its size and digest."""
    for name in ("data", "previous_data", "value"):
        content = orjson.dumps(fields.get(name), option=orjson.OPT_SORT_KEYS)
        if len(content) > _LARGE:
            fields[name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    return fields
