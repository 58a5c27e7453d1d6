"""Which scope a call means: the rules of resolution, without any I/O.

Owns: how an unscoped read, an unscoped write and an explicit scope become scopes, given who is running. Everything an
operation needs to know of its surroundings is in a :class:`Place`; the functions only choose.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from agentfield.codec import Record
from agentfield.errors import InvalidInputError
from agentfield.scope import GLOBAL, RESOLUTION, Scope, ScopeKind, check_scope_kind
from agentfield.subject import Subjects

AnyScope = tuple[ScopeKind, str | None]
"""A scope kind with an id, or with None for every id of that kind."""


class Place(NamedTuple):
    """Where an operation happens: the workflow and session it runs in, the agent's actor scope, a view's own scope."""

    workflow_id: str | None
    session_id: str | None
    actor_id: str | None
    bound: AnyScope | None = None


def address(subjects: Subjects, record: Record) -> tuple[Scope, str] | None:
    """The scope and key of a record; None for a subject that is no key's: something other than agentfield wrote it."""
    try:
        return subjects.parse(record.subject)
    except InvalidInputError:
        return None


def write_scope(place: Place, scope: str | None, scope_id: str | None) -> Scope:
    """Where an unscoped write goes: the workflow; outside any, the session if one is bound; else the global scope."""
    chosen = _explicit(place, scope, scope_id)
    if chosen is not None:
        return chosen
    if place.workflow_id is not None:
        return Scope("workflow", place.workflow_id)
    if place.session_id is not None:
        return Scope("session", place.session_id)
    return GLOBAL


def read_scopes(place: Place, scope: str | None, scope_id: str | None) -> tuple[Scope, ...]:
    """Where an unscoped read looks, in order: workflow, session, actor, global, those that there are."""
    chosen = _explicit(place, scope, scope_id)
    if chosen is not None:
        return (chosen,)
    scopes = []
    for kind in RESOLUTION:
        id = _own_id(place, kind)
        if id is not None:
            scopes.append(Scope(kind, id))
    return tuple(scopes)


def read_subjects(namespace: str, place: Place, scope: str | None, scope_id: str | None, key: str) -> tuple[str, ...]:
    """The subjects of a key in the scopes where a read looks, in order. Raises InvalidInputError."""
    try:
        return _read_subjects(namespace, place, scope, scope_id, key)
    except TypeError:  # what cannot be looked up in a cache is no text: without it, the error says which argument
        return _read_subjects.__wrapped__(namespace, place, scope, scope_id, key)


# The same few keys are read over and over from the same workflow, and from a near-cache nothing else takes as long.
@lru_cache(maxsize=8192)
def _read_subjects(namespace: str, place: Place, scope: str | None, scope_id: str | None, key: str) -> tuple[str, ...]:
    memory = Subjects(namespace).memory
    return tuple(memory(where, key) for where in read_scopes(place, scope, scope_id))


def event_scopes(place: Place, scope: str | None, scope_id: str | None) -> tuple[AnyScope, ...]:
    """What an unscoped subscription or history hears: workflow, session and global with any id, and the own actor.

    A scope without an id means every id of it, except for the actor scope, where it means the own one.
    """
    kind, id = _combine(place, scope, scope_id)
    if kind is not None:
        if kind == "actor" and id is None:
            id = _required_id(place, kind)
        return ((kind, GLOBAL.id if kind == "global" else id),)
    actor: tuple[AnyScope, ...] = (("actor", place.actor_id),) if place.actor_id is not None else ()
    return (("workflow", None), ("session", None), *actor, ("global", GLOBAL.id))


def _explicit(place: Place, scope: str | None, scope_id: str | None) -> Scope | None:
    kind, id = _combine(place, scope, scope_id)
    if kind is None:
        return None
    if kind == "global" and id is None:
        return GLOBAL
    return Scope.of(kind, id if id is not None else _required_id(place, kind))


def _combine(place: Place, scope: str | None, scope_id: str | None) -> tuple[ScopeKind | None, str | None]:
    """The scope asked for, reconciled with the one a view is bound to."""
    if scope is None and place.bound is None:
        if scope_id is not None:
            raise InvalidInputError(f"scope_id={scope_id!r} without a scope: say which kind, e.g. scope='session'")
        return None, None
    if place.bound is None:
        kind, id = check_scope_kind(scope), scope_id
    else:
        kind, id = place.bound
        if (scope is not None and check_scope_kind(scope) != kind) or (scope_id is not None and scope_id != id):
            raise InvalidInputError(
                f"this view is bound to the {kind} scope{'' if id is None else f' {id!r}'}: leave scope and scope_id "
                f"out, or ask the memory it was made from"
            )
    if id is not None:
        Scope.of(kind, id)
    return kind, id


def _own_id(place: Place, kind: ScopeKind) -> str | None:
    if kind == "global":
        return GLOBAL.id
    return {"workflow": place.workflow_id, "session": place.session_id, "actor": place.actor_id}[kind]


def _required_id(place: Place, kind: ScopeKind) -> str:
    id = _own_id(place, kind)
    if id is not None:
        return id
    remedy = {
        "workflow": "no workflow is running here: give scope_id=…, or bind one with `async with app.workflow(id)`",
        "session": "no session is bound here: give scope_id=…, bind one with `async with app.session(id)`, "
        "or pass session_id=… to the call",
        "actor": "this memory belongs to no agent: give scope_id=…, or use app.memory of an Agent",
    }[kind]
    raise InvalidInputError(f"scope {kind!r} without an id: {remedy}")
