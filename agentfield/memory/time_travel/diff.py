"""Differences: what a stretch of the past, or a return to it, changes, key by key.

Owns: the shapes of a comparison, what counts as equal, and comparing two moments. Must not know: writing. Invariant:
keys whose values are the same JSON are no difference, whatever was written in between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

import orjson
from pydantic import BaseModel, ConfigDict

from agentfield.codec import Record, reference_of
from agentfield.event import Entry
from agentfield.fabric.fabric import Fabric
from agentfield.header import EVENT_HEADER
from agentfield.memory.addressing import AnyScope
from agentfield.memory.moment import Instant, Moment
from agentfield.memory.resolving import Resolver
from agentfield.memory.state import live_entries
from agentfield.memory.time_travel.past import whole
from agentfield.pattern import Pattern
from agentfield.scope import RESOLUTION, ScopeKind
from agentfield.value import encode_value


class Change(BaseModel):
    """What became of one key between two moments: both its entries, None where it had no value."""

    model_config = ConfigDict(frozen=True)

    key: str
    scope: ScopeKind
    scope_id: str
    before: Entry | None
    after: Entry | None


class Diff(BaseModel):
    """How memory at one moment differs from memory at another. True if it does. Sorted by scope, id and key.

    Its length is how many changes there are, and to go through it is to go through them.
    """

    model_config = ConfigDict(frozen=True)

    before: Moment
    after: Moment
    added: tuple[Change, ...] = ()
    """Keys that had no value before."""
    removed: tuple[Change, ...] = ()
    """Keys that have no value after: deleted, cleared or expired."""
    changed: tuple[Change, ...] = ()
    """Keys with another value."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __len__(self) -> int:
        return len(self.added) + len(self.removed) + len(self.changed)

    def __iter__(self) -> Iterator[Change]:  # type: ignore[override]
        return iter(self.changes)

    @property
    def changes(self) -> tuple[Change, ...]:
        """All of them."""
        return tuple(sorted((*self.added, *self.removed, *self.changed), key=_order))


async def differences(
    fabric: Fabric,
    resolver: Resolver,
    patterns: Sequence[Pattern],
    scopes: Sequence[AnyScope],
    before: Instant,
    after: Instant,
) -> Diff:
    """Compare two instants. Holds what the keys had at the first, and what differs. Raises as :class:`Past` does."""
    old = {record.subject: record async for record in _state(fabric, patterns, scopes, before)}
    pairs: list[tuple[Record | None, Record | None]] = []
    async for new in _state(fabric, patterns, scopes, after):
        pair = old.pop(new.subject, None), new
        if pair[0] is None or pair[0].sequence != new.sequence:
            pairs.append(pair)
    pairs += [(gone, None) for gone in old.values()]
    changes = [change for pair in pairs if (change := await change_of(resolver, *pair)) is not None]
    return collected(before.moment, after.moment, changes)


def _state(
    fabric: Fabric, patterns: Sequence[Pattern], scopes: Sequence[AnyScope], instant: Instant
) -> AsyncIterator[Record]:
    return whole(fabric, live_entries(fabric, patterns, scopes, at=instant), instant)


async def change_of(resolver: Resolver, old: Record | None, new: Record | None) -> Change | None:
    """How a key changes from one record that gives it a value to another; None if it does not."""
    if old is None and new is None:
        return None
    if old is not None and new is not None and _same_as_stored(old, new):
        return None
    before = None if old is None else await resolver.entry(old)
    after = None if new is None else await resolver.entry(new)
    if before is not None and after is not None and _canonical(before) == _canonical(after):
        return None
    some = before or after
    assert some is not None
    return Change(key=some.key, scope=some.scope, scope_id=some.scope_id, before=before, after=after)


def collected(before: Moment, after: Moment, changes: Sequence[Change]) -> Diff:
    """The changes as a whole."""

    def those(had: bool, has: bool) -> Iterator[Change]:
        return (each for each in changes if (each.before is not None, each.after is not None) == (had, has))

    added, removed, changed = (
        tuple(sorted(those(*which), key=_order)) for which in ((False, True), (True, False), (True, True))
    )
    return Diff(before=before, after=after, added=added, removed=removed, changed=changed)


def _same_as_stored(old: Record, new: Record) -> bool:
    """Whether two records surely hold the same value, without fetching what is large."""
    if any('"schema"' in record.headers.get(EVENT_HEADER, "") for record in (old, new)):
        return False  # the same data may mean different things in two versions
    ours, theirs = reference_of(old), reference_of(new)
    if ours is None and theirs is None:
        return old.payload == new.payload
    return ours is not None and theirs is not None and (ours.digest, ours.size) == (theirs.digest, theirs.size)


def _canonical(entry: Entry) -> bytes:
    return orjson.dumps(orjson.loads(encode_value(entry.value)), option=orjson.OPT_SORT_KEYS)


def _order(change: Change) -> tuple[int, str, str]:
    return RESOLUTION.index(change.scope), change.scope_id, change.key
