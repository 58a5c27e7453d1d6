"""The headers of an event: its id, and everything about the write that is not the value, packed into one.

Each header costs a tenth of the throughput, so there are two: the id, by which the server recognises a repeat, and one
of readable JSON; a delete has a third, as NATS KV marks it. Pure. Must not know: the value, the revision, who reads.

Invariant: what ``encode_event`` packed, ``unpack`` gives back; what anybody else has put there is refused, naming what
is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson
from pydantic import ValidationError

from agentfield.errors import InvalidInputError
from agentfield.event import Operation, Reason, ReplayedFrom, Writer
from agentfield.execution import ascii_json
from agentfield.naming import shown
from agentfield.privacy import Encryption
from agentfield.reference import Reference
from agentfield.schema import Stamp

EVENT_ID: Final = "Nats-Msg-Id"
EVENT_HEADER: Final = "Agentfield-Event"
OPERATION: Final = "KV-Operation"

MAX_TTL: Final = 100 * 366 * 86400.0
"""The longest ttl in seconds, a century: adding it to a time must stay within what datetime and RFC 3339 can say."""

_LAST_END = 2**63 - 1
"""Nanoseconds since the epoch, in the year 2262."""

_VERSION = 1


class Header(NamedTuple):
    """What the packed header says."""

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


def encrypts(headers: Mapping[str, str], encryption: Encryption) -> dict[str, str]:
    """The headers ``encode_event`` gave, for an event whose value is in an envelope."""
    fields = orjson.loads(headers[EVENT_HEADER]) | {"encrypted": encryption.fields()}
    return {**headers, EVENT_HEADER: ascii_json(fields)}


# One execution's writes carry the same text, their ids apart.
@lru_cache(maxsize=512)
def unpack(packed: str) -> Header:
    """What a packed header says. Raises InvalidInputError, which continues "the header … ", if it is not ours."""
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
    return Header(
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
