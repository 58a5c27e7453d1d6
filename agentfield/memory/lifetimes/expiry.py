"""The expiry worker: turning what has come due into delete events.

Owns: what a fired timer means. It trusts only the log: a timer is a question ("should this go now?"), and the key's
last event, or the scope's, is the answer. So a timer that fires late, twice, or for something long overwritten does no
harm. Every agent process runs one; they compete. Invariants: a value is deleted only by an event that expects the very
write it ends, so a newer write always wins; nothing that a timer may be called or hold stops the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from agentfield.amount import number_of
from agentfield.codec import Record, expires_at_ns, is_delete
from agentfield.errors import AgentFieldError, DecodeError, InvalidInputError
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.timers import Due, Worker
from agentfield.memory.lifetime import Periods, timer_name
from agentfield.memory.lifetimes.clearing import BATCH, delete_all, delete_each, is_to_go
from agentfield.memory.lifetimes.sweeping import SWEEP, ensure_sweeps, sweep
from agentfield.memory.timing import set_timers, timed_subjects
from agentfield.scope import Scope, check_scope_kind, scope_id

logger = logging.getLogger("agentfield.expiry")

_PAUSE = 1.0
"""Seconds until the worker tries again after the server was away."""
_SCOPES_AT_ONCE = 50
"""Scopes looked at in one round trip."""
_MARGIN = 1_000_000
"""Nanoseconds past its end at which a scope is looked at again."""
_STEP = 1 << 26
"""Values are looked at again at multiples of so many nanoseconds (67 ms): those that end together share a timer."""


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
                    await self._handle(worker, await worker.next())
                except AgentFieldError as error:
                    logger.debug("expiry worker: %s; trying again", error)
                except Exception:  # a worker that ended in silence would be worse than any error
                    logger.exception("the expiry worker broke off; it starts again")
                else:
                    continue
                ready = False
                await asyncio.sleep(_PAUSE)
                await _give_back(worker)
        finally:
            await worker.aclose()

    async def _handle(self, worker: Worker, due: Sequence[Due]) -> None:
        """What takes longer comes later: values, then scopes, then sweeps; each is done with as soon as it is."""
        kinds: dict[str, list[Due]] = {"key": [], "scope": [], SWEEP: []}
        for item in due:
            known = kinds.get(item.name.partition(".")[0])
            if known is None:
                logger.warning("expiry worker: no such kind of timer: %s", item.name)
                await worker.done([item])
            else:
                known.append(item)
        for batch, subjects in self._batches(kinds["key"]):
            await self._end_keys(batch, subjects)
            await worker.done(batch)
        for begin in range(0, len(kinds["scope"]), _SCOPES_AT_ONCE):
            some = kinds["scope"][begin : begin + _SCOPES_AT_ONCE]
            await self._end_scopes(some)
            await worker.done(some)
        for item in kinds[SWEEP]:
            await sweep(self._fabric, item.name.removeprefix(f"{SWEEP}."), item.payload)
            await worker.done([item])

    def _batches(self, due: Sequence[Due]) -> Iterator[tuple[list[Due], list[str]]]:
        """Timers together with the keys they are about, no more at a time than can be deleted together."""
        batch: list[Due] = []
        subjects: dict[str, None] = {}
        for item in due:
            more = timed_subjects(self._fabric, item.name, item.payload)
            if batch and len(subjects) + len(more) > BATCH:
                yield batch, list(subjects)
                batch, subjects = [], {}
            batch.append(item)
            subjects.update(dict.fromkeys(more))
        if batch:
            yield batch, list(subjects)

    async def _end_keys(self, due: Sequence[Due], subjects: Sequence[str]) -> None:
        fabric = self._fabric
        # The timers have fired, so it is at least as late as that, however well the server's clock is known here.
        now = max(fabric.log.now_at_least(), *(item.fired for item in due))
        expired: list[Record] = []
        early: list[tuple[str, int]] = []
        for record in await fabric.log.last(subjects):
            expires = _expiry_of(record)
            if record is None or expires is None:
                continue
            if expires <= now:
                expired.append(record)
            else:  # a long ttl's timer fires early, and this value may not even be the one it was set for
                early.append((record.subject, (expires // _STEP + 1) * _STEP))
        await set_timers(fabric, early)
        deleted = await delete_all(fabric, expired, None, "expired")
        if deleted.number:
            logger.debug("expired %s", number_of(deleted.number, "key"))

    async def _end_scopes(self, due: Sequence[Due]) -> None:
        """Clear those scopes that have not been used for their period; look again at the others when that may be so."""
        fabric = self._fabric
        scopes: dict[str, Scope] = {}
        for item in due:
            scope = _scope_of(item.name)
            if scope is not None and self._periods.of(scope.kind) is not None:
                scopes[f"{fabric.subjects.namespace}.memory.{scope.kind}.{scope.token}"] = scope
        if not scopes:
            return
        now = max(fabric.log.now_at_least(), *(item.fired for item in due))
        used: dict[str, int] = {}
        live: dict[str, list[Record]] = {prefix: [] for prefix in scopes}
        async for record in fabric.log.current([f"{prefix}.>" for prefix in scopes]):
            prefix = ".".join(record.subject.split(".", 4)[:4])
            used[prefix] = max(used.get(prefix, 0), record.timestamp)
            if is_to_go(record, now):
                live[prefix].append(record._replace(payload=b""))
        unused: list[Record] = []
        for prefix, timestamp in used.items():
            ends = timestamp + int((self._periods.of(scopes[prefix].kind) or 0) * 1_000_000_000)
            if ends > now:
                await fabric.timers.schedule(timer_name(scopes[prefix]), ends + _MARGIN)
            else:
                unused.extend(live[prefix])
        deleted = await delete_each(fabric, unused, None, "cleared")
        if deleted.number:
            logger.info("cleared %s of scopes that are over", number_of(deleted.number, "key"))


def _scope_of(name: str) -> Scope | None:
    """The scope that a timer's name is about; None, with a warning, if there is none of that name."""
    try:
        kind, _, token = name.removeprefix("scope.").partition(".")
        return Scope.of(check_scope_kind(kind), scope_id(token))
    except InvalidInputError as error:
        logger.warning("expiry worker: timer %s: %s", name, error)
        return None


async def _give_back(worker: Worker) -> None:
    try:
        await worker.again()
    except AgentFieldError as error:
        logger.debug("expiry worker: %s; what it had taken comes again by itself", error)


def _expiry_of(record: Record | None) -> int | None:
    """When the record's value ends; None if it is absent, never ends, or is not ours to understand."""
    if record is None or is_delete(record):
        return None
    try:
        return expires_at_ns(record)
    except DecodeError as error:
        logger.warning("expiry worker: %s", error)
        return None
