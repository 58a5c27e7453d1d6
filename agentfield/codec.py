"""The codec: events to headers and payload, and what the log returns to events and entries.

The payload is the value, as plain JSON, or a reference to the object that holds it; a delete is an empty message marked
as NATS KV marks it. Everything else about a write is in two headers: its id, by which the server recognises a repeat,
and one packed in readable JSON, since each header costs a tenth of the throughput. Pure: a ``Record`` is a message as
the log returned it, whatever fetched it.

Invariant: what ``encode_event`` and ``encode_value`` wrote, ``decode_event`` gives back; anything else that the log may
hold is a DecodeError naming its subject and revision, never a wrong event.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson
from pydantic import ValidationError

from agentfield.errors import DecodeError, InvalidInputError
from agentfield.event import Entry, Event, Operation, Reason, ReplayedFrom, Writer
from agentfield.execution import ascii_json
from agentfield.naming import shown
from agentfield.privacy import Encryption
from agentfield.reference import Reference
from agentfield.schema import Schemas, Stamp
from agentfield.scope import Scope
from agentfield.subject import Subjects
from agentfield.value import decode_value, encode_value, validate_as

__all__ = [
    "EVENT_HEADER",
    "EVENT_ID",
    "MAX_TTL",
    "OPERATION",
    "Record",
    "check_ttl",
    "decode_data",
    "decode_entry",
    "decode_event",
    "decode_outline",
    "decode_value",
    "encode_event",
    "encode_value",
    "encrypted_by",
    "encrypts",
    "expires_at_ns",
    "had_run_out",
    "is_delete",
    "led_to_by",
    "needed_to_decode",
    "refer",
    "reference_of",
    "validate_as",
]

EVENT_ID: Final = "Nats-Msg-Id"
EVENT_HEADER: Final = "Agentfield-Event"
OPERATION: Final = "KV-Operation"

MAX_TTL: Final = 100 * 366 * 86400.0
"""The longest ttl in seconds, a century: adding it to a time must stay within what datetime and RFC 3339 can say."""

_LAST_END = 2**63 - 1
"""Nanoseconds since the epoch, in the year 2262."""

_VERSION = 1
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


class _Header(NamedTuple):
    deletes: bool
    writer: Writer
    reason: Reason | None
    ttl: float | None
    ends: int | None
    """When the value expires, where that was fixed before it was stored: nanoseconds since the epoch."""
    reference: Reference | None
    stamp: Stamp | None
    encryption: Encryption | None
    replayed_from: ReplayedFrom | None


def check_ttl(ttl: object) -> float:
    """The ttl in seconds. Raises InvalidInputError unless it is a number above zero and at most a century."""
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise InvalidInputError(f"ttl {shown(ttl)} is not a number: give it in seconds, or None for never")
    if not 0 < ttl <= MAX_TTL:  # false for NaN too
        raise InvalidInputError(
            f"ttl {shown(ttl)} is not above 0 and at most {MAX_TTL:.0f} seconds (a century): "
            f"use None for a value that never expires, delete() for one that should be gone"
        )
    return float(ttl)


def encode_event(
    *,
    event_id: str,
    operation: Operation,
    writer: Writer,
    reason: Reason | None = None,
    ttl: float | None = None,
    ends: int | None = None,
    stamp: Stamp | None = None,
    replayed_from: ReplayedFrom | None = None,
) -> dict[str, str]:
    """The headers of an event; its payload is ``encode_value``'s, or empty for a delete. A new dict, ASCII only.

    ``ends``, in nanoseconds since the epoch, says when exactly a value with a ttl expires; without it, the ttl counts
    from when the value is stored. ``stamp`` names the schema the value was encoded under, ``replayed_from`` the event
    that this one repeats. Raises InvalidInputError if the ttl is out of range.
    """
    fields: dict[str, Any] = {"v": _VERSION, "type": operation}
    for name, value in writer.__dict__.items():
        if value or value == "":  # neither None, nor no depth, nor an empty path
            fields[name] = value
    if reason is not None:
        fields["reason"] = reason
    if ttl is not None:
        fields["ttl"] = check_ttl(ttl)
        if ends is not None:
            fields["ends"] = ends
    if stamp is not None:
        fields["schema"], fields["schema_version"] = stamp
    if replayed_from is not None:
        fields["replayed_from"] = replayed_from.model_dump(mode="json", exclude_none=True)
    headers = {EVENT_ID: event_id, EVENT_HEADER: ascii_json(fields)}
    if operation == "delete":
        headers[OPERATION] = "DEL"
    return headers


def refer(headers: Mapping[str, str], reference: Reference) -> dict[str, str]:
    """The headers ``encode_event`` gave, for an event whose value lies in an object; its payload is the reference's."""
    fields = orjson.loads(headers[EVENT_HEADER]) | {"object": reference.fields()}
    return {**headers, EVENT_HEADER: ascii_json(fields)}


def led_to_by(headers: Mapping[str, str], revision: int) -> dict[str, str]:
    """The headers ``encode_event`` gave, for an event whose cause has this revision."""
    fields = orjson.loads(headers[EVENT_HEADER]) | {"cause_revision": revision}
    return {**headers, EVENT_HEADER: ascii_json(fields)}


def reference_of(record: Record) -> Reference | None:
    """Where the value of a record lies, if its payload is not the value itself.

    Fetch it and put it into ``Record.content`` before decoding. Raises DecodeError if the record is not what agentfield
    writes.
    """
    packed = record.headers.get(EVENT_HEADER)
    if packed is None or '"object"' not in packed:  # without it, no look inside is needed
        return None
    return _header(record, deleted=is_delete(record)).reference


def encrypts(headers: Mapping[str, str], encryption: Encryption) -> dict[str, str]:
    """The headers ``encode_event`` gave, for an event whose value is in an envelope."""
    fields = orjson.loads(headers[EVENT_HEADER]) | {"encrypted": encryption.fields()}
    return {**headers, EVENT_HEADER: ascii_json(fields)}


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


def _expiry(record: Record, header: _Header) -> int | None:
    if header.ttl is None:
        return None
    if header.ends is None:
        return record.timestamp + _nanoseconds(header.ttl)
    return max(header.ends, record.timestamp + 1000)  # one that was stored too late ends at once


def _ttl(record: Record, header: _Header) -> float | None:
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


def _header(record: Record, *, deleted: bool) -> _Header:
    packed = record.headers.get(EVENT_HEADER)
    if packed is None:
        raise _undecodable(
            record,
            f"the message has no {EVENT_HEADER} header: something other than agentfield wrote it; "
            "set or delete its key",
        )
    try:
        header = _unpack(packed)
    except InvalidInputError as error:
        raise _undecodable(record, f"the header {EVENT_HEADER} {shown(packed)} {error}") from error
    if header.deletes is not deleted:
        raise _undecodable(record, f"the headers {EVENT_HEADER} {shown(packed)} and {OPERATION} contradict each other")
    return header


# One execution's writes carry the same text, their ids apart.
@lru_cache(maxsize=512)
def _unpack(packed: str) -> _Header:
    try:
        fields = orjson.loads(packed)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"is not JSON: {error}") from error
    if not isinstance(fields, dict) or type(fields.get("v")) is not int:
        raise InvalidInputError("is not a JSON object with a version v")
    if fields["v"] != _VERSION:
        raise InvalidInputError(f"has version {fields['v']}, but this agentfield reads version {_VERSION}: upgrade it")
    kind, reason, ttl = fields.get("type"), fields.get("reason"), fields.get("ttl")
    if kind not in ("set", "delete"):
        raise InvalidInputError(f"has the unknown type {shown(kind)}")
    if reason not in (None, "expired", "cleared"):
        raise InvalidInputError(f"has the unknown reason {shown(reason)}")
    try:
        writer = Writer.model_validate(fields)
    except ValidationError as error:
        fields_at_fault = ", ".join(str(fault["loc"][0]) for fault in error.errors())
        raise InvalidInputError(f"names its writer wrongly, in {fields_at_fault}") from error
    replayed_from = fields.get("replayed_from")
    try:
        origin = None if replayed_from is None else ReplayedFrom.model_validate(replayed_from)
    except ValidationError as error:
        raise InvalidInputError(f"says wrongly where it was replayed from: {shown(replayed_from)}") from error
    return _Header(
        kind == "delete",
        writer,
        reason,
        None if ttl is None else check_ttl(ttl),
        _ends(fields.get("ends")),
        None if fields.get("object") is None else Reference.of(fields["object"]),
        None if fields.get("schema") is None else _stamp(fields),
        None if fields.get("encrypted") is None else Encryption.of(fields["encrypted"]),
        origin,
    )


def _ends(moment: object) -> int | None:
    if moment is not None and (type(moment) is not int or not 0 < moment <= _LAST_END):
        raise InvalidInputError(f"says wrongly when the value ends: {shown(moment)}")
    return moment


def _stamp(fields: Mapping[str, Any]) -> Stamp:
    name, version = fields["schema"], fields.get("schema_version")
    if not isinstance(name, str) or type(version) is not int or version < 1:
        raise InvalidInputError(f"names its schema wrongly: {shown(name)}, version {shown(version)}")
    return Stamp(name, version)


def _stamped(stamp: Stamp | None) -> dict[str, Any]:
    return {} if stamp is None else {"schema_name": stamp.name, "schema_version": stamp.version}


def _datetime(nanoseconds: int) -> datetime:
    # Whole numbers throughout: a float of nanoseconds is off by a hundred of them. Cut, not rounded, to microseconds.
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)


def _undecodable(record: Record, fault: str) -> DecodeError:
    return DecodeError(fault, subject=record.subject, revision=record.sequence)
