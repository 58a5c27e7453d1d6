"""Copying: an event of one namespace as a write for another.

Owns: what becomes of an event that is replayed: what stays as it was, what cannot, and where the original is named.
Must not know: which events are replayed, nor in which order. Invariants: what was encrypted is encrypted again, with a
key of the namespace it goes to, or is nothing that anybody can read; a copy never ends before its time, nor because its
time was over long ago.
"""

from __future__ import annotations

from agentfield.codec import Record, decode_outline, encrypted_by, expires_at_ns
from agentfield.event import Event, ReplayedFrom
from agentfield.fabric.fabric import Fabric
from agentfield.header import encode_event, encrypts
from agentfield.memory.placing import is_large
from agentfield.memory.preparing import Write
from agentfield.memory.resolving import Resolver
from agentfield.privacy import vault_of
from agentfield.reference import check_size
from agentfield.schema import Stamp
from agentfield.scope import Scope

_ERASED = b"{}"
"""Stands for a value that is erased: its event names the key that is destroyed, and so nobody looks at this."""
_LEAST = 1_000_000
"""Nanoseconds that a value must have left for its copy to end by itself: with fewer it is as good as over."""


async def copied(
    source: Fabric,
    target: Fabric,
    record: Record,
    *,
    cause_revision: int | None,
    event_id: str | None = None,
    ttl: float | None = None,
) -> Write:
    """The write that repeats a record of ``source`` in ``target``, its value fetched, and decrypted for now.

    Id, writer, reason, schema and value are the record's own; ``cause_revision`` is where its cause is in the target.
    ``event_id`` is another id than its own, ``ttl`` how long the copy lives: see :func:`time_left`. Raises what a
    :class:`Resolver` raises, and :class:`InvalidInputError` for a value that does not fit into the target.
    """
    event = decode_outline(record, source.subjects)
    scope = Scope(event.scope, event.scope_id)
    subject = target.subjects.memory(scope, event.key)
    headers = encode_event(
        event_id=event_id or event.id,
        operation=event.operation,
        writer=event.writer.model_copy(update={"cause_revision": cause_revision}),
        reason=event.reason,
        ttl=ttl,
        stamp=_stamp(event),
        replayed_from=ReplayedFrom(
            namespace=source.topology.namespace, revision=event.revision, timestamp=event.timestamp, ttl=event.ttl
        ),
    )
    if event.operation == "delete":
        return Write(scope, event.key, subject, b"", headers, None)
    encryption = encrypted_by(record)
    content = await Resolver(source).content(record)
    if content is None and encryption is not None:
        return Write(scope, event.key, subject, _ERASED, encrypts(headers, encryption), ttl, as_it_is=True)
    payload = content or b""
    large = is_large(target, payload)
    if large:
        check_size(len(payload), event.key)
    else:
        target.log.check_size(subject, payload, headers)
    vault = None if encryption is None else vault_of(encryption, scope, event.key)
    return Write(scope, event.key, subject, payload, headers, ttl, large=large, vault=vault)


def time_left(record: Record, now: int) -> float | None:
    """Seconds that a record's value has still to live at ``now`` (nanoseconds); None for ever, and if that is over.

    Raises :class:`DecodeError`.
    """
    expires = expires_at_ns(record)
    left = 0 if expires is None else expires - now
    return left / 1_000_000_000 if left >= _LEAST else None


def _stamp(event: Event) -> Stamp | None:
    if event.schema_name is None or event.schema_version is None:
        return None
    return Stamp(event.schema_name, event.schema_version)
