"""The codec: events to messages, and what the log returns to events and entries.

A message's payload is the value, as plain JSON (see ``value``), or a reference to the object that holds it; a delete is
an empty message. Everything else about a write is in its headers (see ``header``). Pure: a ``Record`` is a message as
the log returned it, whatever fetched it.

Invariant: what ``encode_event`` and ``encode_value`` wrote, ``decode_event`` gives back; anything else that the log may
hold is a DecodeError naming its subject and revision, never a wrong event.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson

from agentfield.errors import DecodeError, InvalidInputError
from agentfield.event import Entry, Event
from agentfield.header import EVENT_HEADER, EVENT_ID, OPERATION, Header, unpack
from agentfield.naming import shown
from agentfield.privacy import Encryption
from agentfield.reference import Reference
from agentfield.schema import Schemas, Stamp
from agentfield.scope import Scope
from agentfield.subject import Subjects

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Record(NamedTuple):
    """A message as the log holds it."""

    subject: str
    sequence: int
    timestamp: int
    """When the server stored it: nanoseconds since the epoch."""
    headers: Mapping[str, str]
    payload: bytes
    content: bytes | bytearray | None = None
    """The value's JSON, once it has been fetched or decrypted, where the payload is not it; see ``reference_of`` and
    ``encrypted_by``."""
    erased: bool = False
    """Whether the value is encrypted with a key that is known to be destroyed: nobody can read it any more."""


def reference_of(record: Record) -> Reference | None:
    """Where the value of a record lies, if its payload is not the value itself.

    Fetch it and put it into ``Record.content`` before decoding. Raises DecodeError if the record is not what agentfield
    writes.
    """
    packed = record.headers.get(EVENT_HEADER)
    if packed is None or '"object"' not in packed:  # without it, no look inside is needed
        return None
    return _header(record, deleted=is_delete(record)).reference


def encrypted_by(record: Record) -> Encryption | None:
    """What the value of a record is encrypted with, if it is: its payload, or its object, is an envelope then.

    Open it and put what it holds into ``Record.content`` before decoding. Raises DecodeError if the record is not what
    agentfield writes.
    """
    packed = record.headers.get(EVENT_HEADER)
    if packed is None or '"encrypted"' not in packed:  # without it, no look inside is needed
        return None
    return _header(record, deleted=is_delete(record)).encryption


def needed_to_decode(record: Record) -> Mapping[str, str] | None:
    """The headers without which it cannot be told what value the record gives, and until when; None if none are."""
    packed = record.headers.get(EVENT_HEADER)
    if packed is None:
        return None
    if '"encrypted"' in packed:  # the envelope is bound to its event
        return {EVENT_HEADER: packed, EVENT_ID: record.headers.get(EVENT_ID, "")}
    needed = (
        '"object"' in packed or '"schema"' in packed or '"ttl"' in packed
    )  # the last says until when it was a value
    return {EVENT_HEADER: packed} if needed else None


def decode_data(record: Record, subjects: Subjects, schemas: Schemas | None = None) -> Any:
    """The value that a record sets, as the model of the schema that its key has in ``schemas``, if it has one.

    Raises DecodeError if it is not what agentfield writes, or does not fit the schema; InvalidInputError if the key has
    several schemas.
    """
    content = record.content
    if content is None:
        if (reference := reference_of(record)) is not None:
            raise _undecodable(record, f"the value is the object {reference.name}, which was not fetched")
        if encrypted_by(record) is not None:
            raise _undecodable(record, "the value is encrypted, and was not decrypted")
        content = record.payload
    schema = schemas.of(_address(record, subjects)[1]) if schemas else None
    try:
        if schema is None:
            return orjson.loads(content)
        stamp = _header(record, deleted=False).stamp if EVENT_HEADER in record.headers else None
        return schema.decode(content, stamp)
    except orjson.JSONDecodeError as error:
        raise _undecodable(record, f"the payload {shown(bytes(content[:100]))} is not JSON: {error}") from error
    except InvalidInputError as error:
        raise _undecodable(record, str(error)) from error


def decode_event(
    record: Record, subjects: Subjects, previous: Record | None = None, *, schemas: Schemas | None = None
) -> Event:
    """The event a record holds; ``previous`` is the record of the same key before it, if there is one.

    Of a value that is erased, or had run out by then, nothing is given. Raises what ``decode_data`` raises, of either.
    """
    data = decode_data(record, subjects, schemas) if _has_data(record) else None
    before = None
    if previous is not None and _has_data(previous) and not had_run_out(previous, record):
        before = decode_data(previous, subjects, schemas)
    return _event(record, subjects, data, before, None if previous is None else previous.sequence)


def had_run_out(previous: Record, record: Record) -> bool:
    """Whether the value of a key's event before this one was absent already when this one was stored.

    By the times of the log, so that everybody comes to the same; of two events that were replayed from one place, by
    those of the log they came from. The event that tells of the end of a value follows it in time, but what it takes
    away is that value. Raises DecodeError if one of them is not what agentfield writes.
    """
    packed = previous.headers.get(EVENT_HEADER)
    if packed is None or '"ttl"' not in packed:  # without it, no look inside is needed
        return False
    header = _header(record, deleted=is_delete(record))
    before, now = _header(previous, deleted=is_delete(previous)).replayed_from, header.replayed_from
    if before is not None and now is not None and before.namespace == now.namespace:
        over = before.ttl is not None and before.timestamp + timedelta(seconds=before.ttl) <= now.timestamp
    else:
        expires = expires_at_ns(previous)
        over = expires is not None and expires <= record.timestamp
    return over and header.reason != "expired"


def _has_data(record: Record) -> bool:
    return not is_delete(record) and not record.erased


def decode_outline(record: Record, subjects: Subjects) -> Event:
    """The event a record holds, without any data, which is not even looked at. Raises DecodeError."""
    return _event(record, subjects, None, None, None)


def _event(record: Record, subjects: Subjects, data: Any, previous_data: Any, previous_revision: int | None) -> Event:
    scope, key = _address(record, subjects)
    deleted = is_delete(record)
    header = _header(record, deleted=deleted)
    return Event.model_validate(
        {
            "key": key,
            "data": data,
            "previous_data": previous_data,
            "scope": scope.kind,
            "timestamp": _datetime(record.timestamp),
            "scope_id": scope.id,
            "operation": "delete" if deleted else "set",
            "reason": header.reason,
            "revision": record.sequence,
            "previous_revision": previous_revision,
            "id": _id(record),
            "writer": header.writer,
            "ttl": _ttl(record, header),
            "erased": record.erased,
            "replayed_from": header.replayed_from,
            **_stamped(header.stamp),
        }
    )


def decode_entry(record: Record, subjects: Subjects, *, schemas: Schemas | None = None) -> Entry:
    """The entry that a record which sets a value stands for. Raises what ``decode_data`` raises."""
    if is_delete(record):
        raise _undecodable(record, "a delete holds no value")
    scope, key = _address(record, subjects)
    header = _header(record, deleted=False)
    expires = _expiry(record, header)
    return Entry.model_validate(
        {
            "key": key,
            "value": decode_data(record, subjects, schemas),
            "revision": record.sequence,
            "scope": scope.kind,
            "scope_id": scope.id,
            "timestamp": _datetime(record.timestamp),
            "writer": header.writer,
            "expires_at": None if expires is None else _datetime(expires),
            **_stamped(header.stamp),
        }
    )


def is_delete(record: Record) -> bool:
    """Whether the record takes its key away: marked as NATS KV marks a delete or a purge."""
    return record.headers.get(OPERATION) in ("DEL", "PURGE")


def expires_at_ns(record: Record) -> int | None:
    """When the record's value expires, in nanoseconds since the epoch; None for never, and for a delete.

    Raises DecodeError if the record is not what agentfield writes.
    """
    if is_delete(record):
        return None
    return _expiry(record, _header(record, deleted=False))


def _expiry(record: Record, header: Header) -> int | None:
    if header.ttl is None:
        return None
    if header.ends is None:
        return record.timestamp + _nanoseconds(header.ttl)
    return max(header.ends, record.timestamp + 1000)  # one that was stored too late ends at once


def _ttl(record: Record, header: Header) -> float | None:
    """Seconds from when the value was stored to when it expires, as they are between the two times that are shown."""
    expires = _expiry(record, header)
    if header.ends is None or expires is None:
        return header.ttl
    return (expires // 1000 - record.timestamp // 1000) / 1e6


def _address(record: Record, subjects: Subjects) -> tuple[Scope, str]:
    try:
        return subjects.parse(record.subject)
    except InvalidInputError as error:
        raise _undecodable(record, str(error)) from error


def _id(record: Record) -> str:
    id = record.headers.get(EVENT_ID)
    if not id:
        raise _undecodable(record, f"the message has no {EVENT_ID} header: something other than agentfield wrote it")
    return id


def _header(record: Record, *, deleted: bool) -> Header:
    packed = record.headers.get(EVENT_HEADER)
    if packed is None:
        raise _undecodable(
            record,
            f"the message has no {EVENT_HEADER} header: something other than agentfield wrote it; "
            "set or delete its key",
        )
    try:
        header = unpack(packed)
    except InvalidInputError as error:
        raise _undecodable(record, f"the header {EVENT_HEADER} {shown(packed)} {error}") from error
    if header.deletes is not deleted:
        raise _undecodable(record, f"the headers {EVENT_HEADER} {shown(packed)} and {OPERATION} contradict each other")
    return header


def _stamped(stamp: Stamp | None) -> dict[str, Any]:
    return {} if stamp is None else {"schema_name": stamp.name, "schema_version": stamp.version}


def _datetime(nanoseconds: int) -> datetime:
    # Whole numbers throughout: a float of nanoseconds is off by a hundred of them. Cut, not rounded, to microseconds.
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)


def _undecodable(record: Record, fault: str) -> DecodeError:
    return DecodeError(fault, subject=record.subject, revision=record.sequence)
