"""Reverting: making keys what they were at a moment of the past, by new events.

Owns: which events that takes, and storing them in atomic batches, each event only if its key still is what was seen.
Must not know: how the past is read. Invariants: the log only grows; a batch is stored whole or not at all; a key that
holds already what it held then is not written, so reverting twice writes once; a value comes back with the time it had
left, and one whose time has run out since does not come back; a key whose value of then has been erased stays as it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from agentfield.codec import Record, decode_outline, expires_at_ns, reference_of
from agentfield.errors import ConflictError
from agentfield.event import Writer
from agentfield.fabric.appending import Conflict
from agentfield.fabric.batch import MAX_BATCH, Expectation
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import backoff
from agentfield.fabric.reading.asof import as_of
from agentfield.memory.encrypting import all_known, known
from agentfield.memory.lifetime import Lifetimes
from agentfield.memory.moment import Instant, Pin, check_whole
from agentfield.memory.preparing import Write, prepare
from agentfield.memory.resolving import Resolver
from agentfield.memory.state import is_live
from agentfield.memory.time_travel.diff import Change, Diff, change_of, collected
from agentfield.memory.writing import store_together
from agentfield.pattern import Pattern
from agentfield.privacy import Vault
from agentfield.schema import Stamp
from agentfield.scope import Scope

_TRIES = 10
"""How often a batch is tried whose keys are written meanwhile, or that meets undecided writes."""
_FEWER = 3
"""The same, for one that can be divided, since not everything is stored together anyway."""
BATCH_BYTES = 16 * 1024 * 1024
"""Bytes of values that are fetched and stored together."""
_SAME_END = 1_000_000_000
"""Nanoseconds by which two ends of a value's time count as one: a value comes back a little before it is stored."""


class Reverted(BaseModel):
    """What a revert did: true if it wrote anything, or, on trial, would."""

    model_config = ConfigDict(frozen=True)

    changes: Diff
    """From the present to what was brought back: ``added`` had no value any more, ``removed`` had none yet."""
    revision: int | None
    """The revision of the last write; None if nothing was written."""

    def __bool__(self) -> bool:
        return bool(self.changes)


class _Step(NamedTuple):
    """What is to be done to one key: what gives it the value it had then, and its last event now."""

    subject: str
    then: Record | None
    last: Record
    change: Change


class Reverting:
    """One revert of the keys of a scope that match a pattern."""

    def __init__(
        self, fabric: Fabric, lifetimes: Lifetimes, resolver: Resolver, writer: Writer, scope: Scope, pattern: Pattern
    ) -> None:
        self._fabric = fabric
        self._lifetimes = lifetimes
        self._resolver = resolver
        self._writer = writer
        self._scope = scope
        self._pattern = pattern
        self._filters = fabric.subjects.filters([pattern], [(scope.kind, scope.id)])

    async def to(self, instant: Instant, present: Instant, *, dry_run: bool) -> Reverted:
        """Make the keys what they were at ``instant``; ``present`` is now. See :meth:`Memory.revert`."""
        then = await self._records(instant)
        if not self._pattern.is_literal or not then:
            await check_whole(self._fabric, instant)  # of what was not found, nobody could say that it was not there
        then = {
            subject: record for subject, record in then.items() if record.erased or is_live(record, instant.nanoseconds)
        }
        last = await self._records(present)
        steps = await self._steps(then, last)
        changes = []
        revision = 0
        batches = deque(self._batches(steps))
        together = len(batches) == 1
        while batches:
            batch = batches.popleft()
            divisible = not together and len(batch) > 1
            try:
                done, stored = await self._store(batch, _FEWER if divisible else _TRIES) if not dry_run else (batch, 0)
            except ConflictError:
                if not divisible:
                    raise
                half = len(batch) // 2  # the fewer keys, the seldomer one of them is written just then
                batches.extendleft((batch[half:], batch[:half]))
                continue
            changes += [step.change for step in done]
            revision = max(revision, stored)
        return Reverted(changes=collected(present.moment, instant.moment, changes), revision=revision or None)

    async def _records(self, instant: Instant) -> dict[str, Record]:
        subjects = self._fabric.subjects
        return {
            record.subject: await known(self._fabric, record)
            async for record in as_of(self._fabric.log, self._filters, instant.sequence)
            if self._pattern.matches(subjects.parse(record.subject)[1])
        }

    async def _steps(self, then: Mapping[str, Record], last: Mapping[str, Record]) -> list[_Step]:
        """What has to be done: ``then`` holds what gave a value, erased or not, ``last`` each key's last event."""
        now = self._fabric.log.now()
        steps = []
        for subject, record in last.items():
            old = then.get(subject)
            if old is not None and old.erased:
                continue  # there was something, and nobody can bring it back: nor is that a reason to take this away
            if old is not None and not is_live(old, now):
                old = None  # its time has run out since
            current = record if is_live(record, now) else None
            change = await self._change(current, old)
            if change is not None:
                steps.append(_Step(subject, old, record, change))
        return steps

    async def _change(self, current: Record | None, old: Record | None) -> Change | None:
        if current is not None and old is not None and current.sequence == old.sequence:
            return None
        change = await change_of(self._resolver, current, old)
        if change is None and current is not None and old is not None and not _end_together(current, old):
            before, after = await self._resolver.entry(current), await self._resolver.entry(old)
            return Change(key=after.key, scope=after.scope, scope_id=after.scope_id, before=before, after=after)
        return change

    def _batches(self, steps: Sequence[_Step]) -> Iterator[list[_Step]]:
        batch: list[_Step] = []
        vaults: set[Vault] = set()
        messages = size = 0
        for step in steps:
            reference = None if step.then is None else reference_of(step.then)
            # A large value takes a message of its own, by which its object is known not to be given up.
            more = 1 if reference is None else 2
            # So does each key that personal values are encrypted with, by which it is known not to be destroyed.
            vault = None if step.then is None else self._vault(step.subject)
            guards = len(vaults) + (vault is not None and vault not in vaults)
            weight = 0 if step.then is None else len(step.then.payload) if reference is None else reference.size
            if batch and (messages + more + guards > MAX_BATCH or size + weight > BATCH_BYTES):
                yield batch
                batch, vaults, messages, size = [], set(), 0, 0
            if vault is not None:
                vaults.add(vault)
            batch.append(step)
            messages, size = messages + more, size + weight
        if batch:
            yield batch

    def _vault(self, subject: str) -> Vault | None:
        return self._fabric.keys.policies.known.vault(*self._fabric.subjects.parse(subject))

    async def _store(self, steps: Sequence[_Step], tries: int) -> tuple[Sequence[_Step], int]:
        """Store a batch, deciding anew what it takes where its keys are written meanwhile; return what was done."""
        then = {step.subject: step.then for step in steps if step.then is not None}
        subjects = [step.subject for step in steps]
        for attempt in range(tries):
            if attempt:
                then = {subject: await known(self._fabric, record) for subject, record in then.items()}
                steps = await self._steps(then, await self._last(subjects))
            writes = [write for step in steps if (write := await self._write(step)) is not None]
            if len(writes) < len(steps):
                continue
            if not steps:
                return steps, 0
            expectations = [Expectation(step.subject, step.last.sequence) for step in steps]
            try:
                return steps, await store_together(self._fabric, self._lifetimes, writes, expectations)
            except Conflict:
                await asyncio.sleep(backoff(attempt))
        last = await self._last(subjects)
        moved = next((step for step in steps if last.get(step.subject, step.last) != step.last), steps[0])
        key = self._fabric.subjects.parse(moved.subject)[1]
        raise ConflictError(
            key,
            expected=moved.last.sequence,
            actual=last.get(moved.subject, moved.last).sequence,
            message=f"{key!r}, or what is reverted together with it, was written to {tries} times meanwhile; of that "
            "nothing was written, what had been reverted before stays so: revert again",
        )

    async def _last(self, subjects: Sequence[str]) -> dict[str, Record]:
        records = await all_known(self._fabric, await self._fabric.log.last(subjects))
        return {record.subject: record for record in records if record is not None}

    async def _write(self, step: _Step) -> Write | None:
        """The event that a step takes; None if the value has run out, or was erased, since the step was planned.

        A personal value is encrypted anew, for an envelope belongs to its event.
        """
        scope, key = self._fabric.subjects.parse(step.subject)
        if step.then is None:
            return prepare(self._fabric, scope, key, "delete", b"", self._writer)
        ends = expires_at_ns(step.then)
        left = None if ends is None else (ends - self._fabric.log.now()) / 1e9
        if left is not None and left <= 0:
            return None
        outline = decode_outline(step.then, self._fabric.subjects)
        version = outline.schema_version
        stamp = None if outline.schema_name is None or version is None else Stamp(outline.schema_name, version)
        content = await self._resolver.content(step.then)
        if content is None:
            return None
        return prepare(self._fabric, scope, key, "set", content, self._writer, ttl=left, ends=ends, stamp=stamp)


def _end_together(ours: Record, theirs: Record) -> bool:
    """Whether two values end at the same time, or never."""
    mine, other = expires_at_ns(ours), expires_at_ns(theirs)
    if mine is None or other is None:
        return mine is other
    return abs(mine - other) <= _SAME_END


async def present_of(fabric: Fabric) -> Instant:
    """The present, as an instant."""
    return await Pin(int((await fabric.log.state())["last_seq"]), "now").instant(fabric)
