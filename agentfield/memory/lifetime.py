"""How long scopes live: workflows until a grace period after their last sign of life, sessions until they are idle.

Owns: the timers of scopes, set by whoever uses one, at most now and then. Must not know: what happens when one fires
(see ``expiry``). Invariant: a workflow or session that holds anything has a timer, even if everyone who used it was
killed; so nothing is left behind but history.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agentfield.errors import AgentFieldError
from agentfield.fabric.fabric import Fabric
from agentfield.scope import Scope, ScopeKind

logger = logging.getLogger("agentfield.lifetime")

_RENEWALS = 8
"""A timer is moved at most this many times within a period: often enough to be right, too seldom to cost."""
_LATE = 1.0
"""Seconds by which a scope may end too early, counted from the end of its root execution."""
_SLACK = 0.05
"""Seconds a timer is set past the period, since the event's own time is a little later than the timer's."""
_REMEMBERED = 10_000
"""Scopes whose timer a process remembers having set; forgetting one only means setting it again."""


@dataclass(frozen=True, slots=True)
class Periods:
    """How long an unused scope is kept, in seconds; None for ever."""

    workflow: float | None = 24 * 3600.0
    session: float | None = 30 * 24 * 3600.0

    def of(self, kind: ScopeKind) -> float | None:
        """The period of a kind of scope; actor and global scopes live until they are deleted."""
        return self.workflow if kind == "workflow" else self.session if kind == "session" else None


class _Holding:
    """A scope in which executions of this process run: how many, and whether they made calls."""

    def __init__(self) -> None:
        self.count = 0
        self.shared = False


class Lifetimes:
    """The scopes that this process uses."""

    def __init__(self, periods: Periods | None = None) -> None:
        self.periods = periods or Periods()
        self._set_at: OrderedDict[Scope, float] = OrderedDict()
        self._holding: dict[Scope, _Holding] = {}

    async def touch(self, fabric: Fabric, scope: Scope, *, within: float | None = None) -> None:
        """The scope is in use: see that its timer lies far enough ahead. Cheap, except now and then.

        A timer that was set no more than ``within`` seconds ago (default: an eighth of the period) is left alone.
        Raises :class:`UnavailableError` when the timer cannot be set; nothing must be written into the scope then.
        """
        period = self.periods.of(scope.kind)
        if period is None:
            return
        now = asyncio.get_running_loop().time()
        set_at = self._set_at.get(scope)
        if set_at is not None and 0 <= now - set_at < (period / _RENEWALS if within is None else within):
            return
        await fabric.timers.schedule(timer_name(scope), fabric.log.now() + int((period + _SLACK) * 1_000_000_000))
        self._set_at[scope] = now
        self._set_at.move_to_end(scope)
        while len(self._set_at) > _REMEMBERED:
            self._set_at.popitem(last=False)

    def forget(self) -> None:
        """What is used from now on is another log: no timer has been set there."""
        self._set_at.clear()

    def shared(self, scope: Scope) -> None:
        """Somebody else may write into the scope from now on: a call was made in it."""
        if (holding := self._holding.get(scope)) is not None:
            holding.shared = True

    @asynccontextmanager
    async def held(self, fabric: Fabric, scope: Scope) -> AsyncIterator[None]:
        """While inside, the scope counts as used, even if nothing is written: an execution in it is running."""
        period = self.periods.of(scope.kind)
        if period is None:
            yield
            return
        holding = self._holding.setdefault(scope, _Holding())
        holding.count += 1
        renewing = asyncio.create_task(self._hold(fabric, scope, period), name=f"lifetime of {scope}")
        try:
            yield
        finally:
            holding.count -= 1
            if not holding.count:
                del self._holding[scope]
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            if scope in self._set_at or (holding.shared and await self._is_in_use(fabric, scope)):
                await self._keep(fabric, scope, within=_LATE)  # the period counts from here

    async def _hold(self, fabric: Fabric, scope: Scope, period: float) -> None:
        while True:
            await asyncio.sleep(period / _RENEWALS)
            await self._keep(fabric, scope)

    async def _is_in_use(self, fabric: Fabric, scope: Scope) -> bool:
        everything = f"{fabric.subjects.namespace}.memory.{scope.kind}.{scope.token}.>"
        try:
            return await fabric.log.last_of(everything) is not None
        except AgentFieldError as error:
            logger.warning("whether %s is in use could not be found out: %s", scope, error)
            return True

    async def _keep(self, fabric: Fabric, scope: Scope, *, within: float | None = None) -> None:
        try:
            await self.touch(fabric, scope, within=within)
        except AgentFieldError as error:
            logger.warning("the lifetime of %s could not be prolonged: %s", scope, error)


def timer_name(scope: Scope) -> str:
    """The timer of a scope: ``scope.<kind>.<id token>``."""
    return f"scope.{scope.kind}.{scope.token}"
