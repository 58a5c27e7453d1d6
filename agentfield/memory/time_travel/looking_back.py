"""Looking back: memory as it was, what has changed since, and going back to it."""

from __future__ import annotations

from datetime import datetime, timedelta

from agentfield.errors import InvalidInputError
from agentfield.memory.addressing import event_scopes, write_scope
from agentfield.memory.base import Base
from agentfield.memory.moment import Pin
from agentfield.memory.time_travel.diff import Diff, differences
from agentfield.memory.time_travel.past import Past
from agentfield.memory.time_travel.revert import Reverted, Reverting, present_of
from agentfield.pattern import Pattern


class LookingBack(Base):
    """The operations on states of the past."""

    def as_of(self, point: datetime | timedelta | int) -> Past:
        """Memory as it was at a point in the past: the same reads, bound to the same scope, and nothing that writes.

        ``point`` is a revision (what had happened up to it, itself included), an aware datetime (every event whose
        ``timestamp`` is not after it), or an age, counted back from this call. A value whose ``ttl`` had run out by
        then is absent, even if its delete event came later; for a revision, "then" is the time of its event. So is one
        that has been erased since.

        Asks nothing yet: see :class:`Past` for what its reads raise. Raises :class:`InvalidInputError` for what is no
        point in time.
        """
        past = Past(self._fabric, Pin(point, "point"), self.schemas, agent=self._agent, actor_id=self._actor_id)
        past._bound = self._bound
        return past

    async def diff(
        self,
        pattern: str,
        before: datetime | timedelta | int,
        after: datetime | timedelta | int | None = None,
        scope: str | None = None,
        scope_id: str | None = None,
    ) -> Diff:
        """How the keys that match a pattern differ between two points, by default from one to the present.

        Points and errors as for ``as_of``, scopes as for ``history``: without one, every workflow and session, the
        global scope, and the own actor. Keys whose values are the same JSON are no difference, whatever was written
        in between. Holds what the keys had at the first point, and what differs.
        """
        parsed = Pattern.parse(pattern)
        pins = Pin(before, "before"), None if after is None else Pin(after, "after")
        scopes = event_scopes(self._place(), scope, scope_id)
        fabric = await self._fabric()
        then = await pins[0].instant(fabric)
        now = await present_of(fabric) if pins[1] is None else await pins[1].instant(fabric)
        return await differences(fabric, self._resolver(fabric), [parsed], scopes, then, now)

    async def revert(
        self,
        pattern: str,
        to: datetime | timedelta | int,
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        dry_run: bool = False,
    ) -> Reverted:
        """Make a key, or the keys of a scope that match a pattern, what they were at a point, by new events.

        What had a value then and has another or none now is set to it, what had none and has one now is deleted, and
        what is the same already is not written, nor is a key whose value of then has been erased. A value comes back
        with the time its ``ttl`` had left; one that would have run out by now does not. A key's scope is that of a
        write; for a pattern, it must be named (or be that of a view). Up to 1,000 events (and 16 MiB of values) are
        stored all or none, more in several such batches. Each event is stored only if its key has not been written
        since it was looked at; otherwise its batch is decided anew, up to 10 times.

        Returns what has changed; with ``dry_run``, what would, and nothing is written. Raises as ``as_of``, and
        :class:`ConflictError` if the keys are written to without pause: then batches before stay reverted.
        """
        parsed = Pattern.parse(pattern)
        pin = Pin(to, "to")
        if not parsed.is_literal and scope is None and self._bound is None:
            raise InvalidInputError(
                "revert() of a pattern without a scope: say which, e.g. revert('*', to, scope='session', scope_id=…)"
            )
        where = write_scope(self._place(), scope, scope_id)
        writer = self._writer()
        fabric = await self._fabric()
        instant = await pin.instant(fabric)
        reverting = Reverting(fabric, self._lifetimes, self._resolver(fabric), writer, where, parsed)
        reverted = await reverting.to(instant, await present_of(fabric), dry_run=dry_run)
        if reverted.revision is not None:
            self.seen.saw(reverted.revision)
        return reverted
