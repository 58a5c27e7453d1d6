"""The expiry worker: turning what has come due into delete events.

Owns: what a fired timer means. It trusts only the log: a timer is a question ("should this go now?"), and the key's
last event, or the scope's, is the answer. So a timer that fires late, twice, or for something long overwritten does no
harm. Every agent process runs one; they compete. Invariant: a value is deleted only by an event that expects the very
write it ends, so a newer write always wins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from agentfield.codec import Record, expires_at_ns, is_delete
from agentfield.errors import AgentFieldError, DecodeError
from agentfield.event import Writer
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.timers import Due
from agentfield.memory.clearing import BATCH, clear, delete_all
from agentfield.memory.lifetime import Periods
from agentfield.memory.lifetime import timer_name as scope_timer
from agentfield.memory.sweeping import SWEEP, ensure_sweeps, sweep
from agentfield.memory.writing import timer_name
from agentfield.scope import Scope, check_scope_kind, scope_id

logger = logging.getLogger("agentfield.expiry")

_PAUSE = 1.0
"""Seconds until the worker tries again after the server was away."""


class ExpiryWorker:
    """Works inside ``async with``; leaving the block stops it, and what it had not finished goes to another one."""

    def __init__(self, fabric: Fabric, periods: Periods) -> None:
        self._fabric = fabric
        self._periods = periods
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to work. Needs no server yet: outages are waited out."""
        self._task = asyncio.create_task(self._run(), name="agentfield expiry worker")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        fabric = self._fabric
        worker = fabric.timers.worker()
        ready = False
        try:
            while True:
                try:
                    if not ready:
                        await fabric.timers.ensure_worker()
                        await ensure_sweeps(fabric)
                        ready = True
                    due = await worker.next()
                    await self._handle(due)
                    await worker.done(due)
                except AgentFieldError as error:
                    logger.debug("expiry worker: %s; trying again", error)
                    ready = False
                    await asyncio.sleep(_PAUSE)
        finally:
            await worker.aclose()

    async def _handle(self, due: Sequence[Due]) -> None:
        keys: list[str] = []
        for item in due:
            kind, _, rest = item.name.partition(".")
            if kind == "key":
                keys.append(f"{self._fabric.subjects.namespace}.memory.{rest}")
            elif kind == "scope":
                await self._end_scope(rest)
            elif kind == SWEEP:
                await sweep(self._fabric, rest, item.payload)
            else:
                logger.warning("expiry worker: no such kind of timer: %s", item.name)
        for begin in range(0, len(keys), BATCH):
            await self._end_keys(keys[begin : begin + BATCH])

    async def _end_keys(self, subjects: Sequence[str]) -> None:
        fabric = self._fabric
        now = fabric.log.now()
        expired: list[Record] = []
        for record in await fabric.log.last(list(dict.fromkeys(subjects))):
            expires = _expiry_of(record)
            if record is None or expires is None:
                continue
            if expires <= now:
                expired.append(record)
            else:  # the value was renewed, or a write that failed had moved the timer
                await fabric.timers.schedule(timer_name(fabric, record.subject), expires + 1_000_000)
        count = await delete_all(fabric, expired, None, "expired")
        if count:
            logger.debug("expired %d keys", count)

    async def _end_scope(self, rest: str) -> None:
        fabric = self._fabric
        kind_text, _, token = rest.partition(".")
        scope = Scope.of(check_scope_kind(kind_text), scope_id(token))
        period = self._periods.of(scope.kind)
        if period is None:
            return
        last = await fabric.log.last_of(f"{fabric.subjects.namespace}.memory.{scope.kind}.{scope.token}.>")
        if last is None:
            return
        unused_at = last.timestamp + int(period * 1_000_000_000)
        if unused_at > fabric.log.now():
            await fabric.timers.schedule(scope_timer(scope), unused_at)
            return
        count = await clear(fabric, scope, Writer(), "cleared")
        if count:
            logger.info("cleared %s: %d keys", scope, count)


def _expiry_of(record: Record | None) -> int | None:
    """When the record's value ends; None if it is absent, never ends, or is not ours to understand."""
    if record is None or is_delete(record):
        return None
    try:
        return expires_at_ns(record)
    except DecodeError as error:
        logger.warning("expiry worker: %s", error)
        return None
