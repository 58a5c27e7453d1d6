"""Preparing: a write, validated and encoded before anything is sent.

Owns: what a write is until it is an event, and what can never be one. Pure, but for new ids. Must not know: how it is
stored. Invariant: what is prepared can be sent as it is; what cannot is refused before any I/O.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from agentfield import execution
from agentfield.errors import InvalidInputError
from agentfield.event import Operation, Reason, Writer
from agentfield.fabric.fabric import Fabric
from agentfield.header import check_ttl, encode_event
from agentfield.key import key_tokens
from agentfield.memory.placing import Placed, is_large
from agentfield.naming import shown
from agentfield.privacy import Vault
from agentfield.reference import check_size
from agentfield.schema import Stamp
from agentfield.scope import Scope

_EVENT_ID = re.compile(r"[!-~]{1,128}")


class Write(NamedTuple):
    """A write, validated and encoded, not yet sent."""

    scope: Scope
    key: str
    subject: str
    payload: bytes
    headers: dict[str, str]
    ttl: float | None
    large: bool = False
    """Whether the payload goes to an object, and only a reference to it into the event."""
    placed: Placed | None = None
    """What goes into the event, once the payload of a large write is stored."""
    vault: Vault | None = None
    """What its value is to be encrypted for, whatever the policy says; None leaves that to the policy."""
    as_it_is: bool = False
    """Whether the payload is stored as it is, whatever the policy says: there is no value in it to encrypt."""


def prepare(
    fabric: Fabric,
    scope: Scope,
    key: str,
    operation: Operation,
    payload: bytes,
    writer: Writer,
    *,
    ttl: float | None = None,
    ends: int | None = None,
    event_id: str | None = None,
    reason: Reason | None = None,
    stamp: Stamp | None = None,
) -> Write:
    """Validate and encode; ``ends`` as for ``encode_event``. Raises :class:`InvalidInputError`."""
    check_write(key, ttl, event_id)
    if ttl is not None:
        ttl = check_ttl(ttl)
    subject = fabric.subjects.memory(scope, key)
    headers = encode_event(
        event_id=event_id or execution.new_id(),
        operation=operation,
        writer=writer,
        reason=reason,
        ttl=ttl,
        ends=ends,
        stamp=stamp,
    )
    if is_large(fabric, payload):
        check_size(len(payload), key)
        return Write(scope, key, subject, payload, headers, ttl, large=True)
    fabric.log.check_size(subject, payload, headers)
    return Write(scope, key, subject, payload, headers, ttl)


def check_write(key: str, ttl: float | None = None, event_id: object = None) -> None:
    """Raises :class:`InvalidInputError` for what can never be written; needs no connection to tell."""
    key_tokens(key)
    if ttl is not None:
        check_ttl(ttl)
    check_event_id(event_id)


def check_event_id(event_id: object) -> None:
    """Raises :class:`InvalidInputError` unless this can be the id of an event, or is None."""
    if event_id is None:
        return
    if not isinstance(event_id, str) or _EVENT_ID.fullmatch(event_id) is None:
        raise InvalidInputError(
            f"event_id={shown(event_id)} is not 1 to 128 printable ASCII characters without spaces: "
            "give the one that the OutcomeUnknownError carried"
        )


def check_revision(revision: int | None) -> None:
    """Raises :class:`InvalidInputError` unless this can be a revision, or is None."""
    if revision is not None and (type(revision) is not int or revision < 0):
        raise InvalidInputError(
            f"if_revision={revision!r} is not a revision: give the integer that set() or entry() gave"
        )
