"""Republishing: a part of the past, written again into another namespace, in its order.

Owns: what is refused, the batches, how far it has come, and going on from there. Must not know: how an event becomes a
write. Invariants: with every batch the server stores, in one step, how far that is, on the condition that nobody else
has stored such a word since; so an event is there once, whoever dies when, however often it is begun again and however
many begin it at once; and what is there is at any time the first events of the part, without a gap.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NamedTuple

import orjson

from agentfield.codec import Record, expires_at_ns
from agentfield.errors import ConflictError, DecodeError, InvalidInputError
from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.fabric.appending import Conflict
from agentfield.fabric.batch import Expectation
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import backoff
from agentfield.header import EVENT_ID, encode_event, led_to_by
from agentfield.memory.encrypting import vault_for
from agentfield.memory.history import Slice
from agentfield.memory.lifetime import Lifetimes, Periods
from agentfield.memory.preparing import Write
from agentfield.memory.writing import store_together
from agentfield.naming import shown
from agentfield.replay.copying import copied, time_left
from agentfield.replay.excerpt import Excerpt
from agentfield.replay.pacing import Pace
from agentfield.replay.retracing import Retracing, cause_revision
from agentfield.scope import GLOBAL

_BATCH: Final = 400
"""Events stored together: with what large and encrypted ones need to have checked, they stay within one batch."""
_BATCH_BYTES: Final = 8 * 1024 * 1024
_TRIES: Final = 3
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Stood:
    """How far a replay has come, as the target says it."""

    namespace: str
    """Where the events come from."""
    created: int
    """When the log that they come from was made: one of the same name that was made later is another one."""
    patterns: tuple[str, ...]
    scopes: tuple[str, ...]
    writer: str | None
    start: int
    """Where the part begins: the first revision that belongs to it."""
    revision: int
    """The last revision that has been replayed, or been found not to be meant."""
    events: int = 0
    """Events that are in the target, by all the runs that it took."""
    untimed: int = 0
    """Of these, values with a ttl that was over when they were replayed."""
    appended: bool = False
    """Whether the target held something else when it began."""

    def is_of(self, other: Stood) -> bool:
        """Whether both are about the same replay, begun at the same place or later."""
        ours, theirs = (
            (each.namespace, each.created, each.patterns, each.scopes, each.writer) for each in (self, other)
        )
        return ours == theirs and other.start <= self.start <= other.revision + 1


class _Copy(NamedTuple):
    """An event that is to be stored."""

    record: Record
    write: Write
    ahead: int | None
    """The place in the batch of the event that led to this one, if it is in the same."""


class Republishing:
    """A replay into another namespace: ``begin`` it, then go through ``run``."""

    def __init__(self, source: Fabric, target: Fabric, excerpt: Excerpt, *, append: bool, pace: Pace) -> None:
        self._source = source
        self._target = target
        self._excerpt = excerpt
        self._append = append
        self._pace = pace
        self._subject = f"{target.topology.namespace}.checks.republished"
        self._lifetimes = Lifetimes(Periods(workflow=None, session=None))
        self._places = Retracing(source, target)
        self._present: set[str] = set()
        self._word = 0
        self.stood = Stood(
            namespace=source.topology.namespace,
            created=source.log.created,
            patterns=tuple(pattern.text for pattern in excerpt.patterns),
            scopes=tuple(kind if id is None else f"{kind}:{id}" for kind, id in excerpt.scopes),
            writer=excerpt.writer,
            start=excerpt.part.start,
            revision=excerpt.part.start - 1,
        )
        """How far it has come, by the server's word."""
        self.left_out = 0
        """Events that were not written, since they are in the target already."""

    async def begin(self) -> bool:
        """See what the target holds: True if it goes on with what was begun before.

        Raises :class:`InvalidInputError` if the target holds something else, and nothing said that this is right;
        nothing was written then. Also raises :class:`UnavailableError`.
        """
        source, target = self._source, self._target
        there = await self._last_word()
        if there is not None and self.stood.is_of(there):
            self.stood = there
            if there.appended:
                await self._learn_present()
            return True
        name = target.topology.namespace
        first = await target.log.first_of(target.subjects.all_memory)
        if first is not None and not self._append:
            before = "" if there is None else f", the last of them replayed from {there.namespace!r}"
            raise InvalidInputError(
                f"namespace {shown(name)} holds events already{before}, and these would come after them: replay into "
                "a namespace that is empty, or add --append; nothing was written"
            )
        if first is not None:
            self.stood = replace(self.stood, appended=True)
            await self._learn_present()
        elif source.keys.policies.known and not target.keys.policies.known:
            # Who works there must not write in plain what is personal here.
            await target.keys.policies.set(source.keys.policies.known)
        return False

    async def run(self) -> AsyncGenerator[Stood, None]:
        """Write the events, as the pace allows; gives how far it has come, whenever that changes, and at the end.

        Whatever ends it, it can be begun again. Raises :class:`ConflictError` if somebody else replays into the target
        at the same time, :class:`DecodeError` for an event that cannot be read, and what reading and writing raise.
        """
        part = self._excerpt.part
        excerpt = self._excerpt._replace(part=Slice(max(part.start, self.stood.revision + 1), part.stop))
        batch: list[_Copy] = []
        size = 0
        passed = self.stood.revision
        wanted = True
        async with aclosing(excerpt.records(self._source)) as records:
            async for record, previous in records:
                if self._is_there(record):
                    self.left_out += 1
                    passed = record.sequence
                    continue
                if batch and not self._pace.is_due(record):
                    async for stood in self._store(batch, passed):
                        yield stood
                    batch, size = [], 0
                wanted = await self._pace.turn(record, previous)
                if not wanted:
                    break
                batch.append(await self._copy(record, batch))
                size += len(batch[-1].write.payload)
                passed = record.sequence
                if len(batch) == _BATCH or size >= _BATCH_BYTES:
                    async for stood in self._store(batch, passed):
                        yield stood
                    batch, size = [], 0
        passed = max(passed, part.stop) if wanted else passed
        async for stood in self._store(batch, passed):
            yield stood

    async def _copy(self, record: Record, batch: Sequence[_Copy]) -> _Copy:
        """The copy, given those that will be stored just before it."""
        cause = cause_revision(self._source, record)
        ahead = next((index for index, each in enumerate(batch) if each.record.sequence == cause), None)
        since = 1 if self.stood.appended else self.stood.start
        there = None if ahead is not None else await self._places.cause_of(record, since=since)
        ttl = time_left(record, self._target.log.now())
        return _Copy(record, await copied(self._source, self._target, record, cause_revision=there, ttl=ttl), ahead)

    async def _store(self, batch: Sequence[_Copy], passed: int) -> AsyncGenerator[Stood, None]:
        """Store the batch, in one step if possible; gives every step that was made."""
        tries = 0
        while batch or passed > self.stood.revision:
            caused = next((index for index, each in enumerate(batch) if each.ahead is not None), None)
            after = None
            now, upto = batch, passed
            if caused is not None and (tries == _TRIES or any(self._is_checked(each.write) for each in batch)):
                # Where events come to lie is not to be known beforehand: those that led to others go first.
                now, upto = batch[:caused], batch[caused - 1].record.sequence
            elif caused is not None:
                after = int((await self._target.log.state())["last_seq"])
            there = self._word
            try:
                # Asked beforehand, too: of events that somebody else has just stored the server says that it knows
                # them, and not that the condition does not hold.
                await self._last_word()
                if self._word != there:
                    raise Conflict(self._word)
                yield await _to_its_end(self._store_together(now, upto, after))
            except (Conflict, InvalidInputError) as error:
                # The latter: the server knows the ids of some, since somebody else stored them between the two.
                await self._last_word()
                if self._word != there or (isinstance(error, Conflict) and tries > _TRIES and after is None):
                    raise self._elsewhere(there) from None
                if not isinstance(error, Conflict):
                    raise
                tries += 1
                await asyncio.sleep(backoff(tries))
            else:
                if now is batch:
                    return
                batch = [self._placed(each, len(now)) for each in batch[len(now) :]]
                tries = 0

    def _elsewhere(self, expected: int) -> ConflictError:
        return ConflictError(
            "replay",
            expected=expected,
            actual=self._word,
            message=f"somebody else replays into namespace {self._target.topology.namespace!r} at the same time; this "
            f"one came to revision {self.stood.revision}: when the other one is through, the same command goes on with "
            "what is left",
        )

    def _is_checked(self, write: Write) -> bool:
        """Whether something has to be stored beside the write, or checked with it."""
        return write.large or vault_for(self._target, write) is not None

    def _placed(self, copy: _Copy, stored: int) -> _Copy:
        """A copy whose cause may have been among so many that have been stored before it."""
        if copy.ahead is None:
            return copy
        if copy.ahead >= stored:
            return copy._replace(ahead=copy.ahead - stored)
        headers = led_to_by(copy.write.headers, self._word - stored + copy.ahead)
        return copy._replace(write=copy.write._replace(headers=headers), ahead=None)

    async def _store_together(self, batch: Sequence[_Copy], passed: int, after: int | None) -> Stood:
        """Store these together with the word on how far that is, or nothing."""
        writes = [
            each.write
            if each.ahead is None or after is None
            else each.write._replace(headers=led_to_by(each.write.headers, after + 1 + each.ahead))
            for each in batch
        ]
        ended = sum(each.write.ttl is None and expires_at_ns(each.record) is not None for each in batch)
        events, untimed = self.stood.events + len(batch), self.stood.untimed + ended
        stood = replace(self.stood, revision=passed, events=events, untimed=untimed)
        word = Expectation(self._subject, self._word)
        writes.append(self._note(stood))
        last = await store_together(self._target, self._lifetimes, writes, [word], after=after)
        for index, each in enumerate(batch):
            self._places.remember(each.record.sequence, last - len(batch) + index)
        self._word = last
        self.stood = stood
        return stood

    def _note(self, stood: Stood) -> Write:
        content = orjson.dumps({"v": _VERSION, **asdict(stood)})
        headers = encode_event(event_id=new_id(), operation="set", writer=Writer())
        return Write(GLOBAL, "", self._subject, content, headers, None, as_it_is=True)

    async def _last_word(self) -> Stood | None:
        """How far the last replay into the target has come; None if there was none."""
        (record,) = await self._target.log.last([self._subject])
        self._word = 0 if record is None else record.sequence
        return None if record is None else _stood(record)

    def _is_there(self, record: Record) -> bool:
        """Whether the target holds the event: it was replayed before, or it was the target that it came from."""
        return record.headers.get(EVENT_ID) in self._present

    async def _learn_present(self) -> None:
        """Which events the target holds: the server itself would recognise them for two minutes only.

        Raises :class:`InvalidInputError` if it holds some where nobody can look.
        """
        log, subjects = self._target.log, self._target.subjects
        first = await log.begins()
        if first > 1:
            raise InvalidInputError(
                f"namespace {shown(self._target.topology.namespace)} holds events already, and which ones, nobody can "
                f"say: its log was trimmed and begins at revision {first}, so that events would come twice. Name the "
                "archive of what was before with AGENTFIELD_ARCHIVE, or replay into a namespace that is empty; nothing "
                "was written"
            )
        excerpt = self._excerpt
        async for record in log.read(subjects.filters(excerpt.patterns, excerpt.scopes)):
            if (id := record.headers.get(EVENT_ID)) is not None:
                self._present.add(id)


async def _to_its_end(storing: Coroutine[Any, Any, Stood]) -> Stood:
    """Store it even if this is cancelled meanwhile: so how far it has come is known, and not only to the server."""
    task = asyncio.create_task(storing)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # the cancellation counts
        raise


def _stood(record: Record) -> Stood:
    try:
        fields: dict[str, Any] = orjson.loads(record.payload)
        if fields.pop("v") != _VERSION:
            raise ValueError("another version")
        fields |= {name: tuple(fields[name]) for name in ("patterns", "scopes")}
        return Stood(**fields)
    except (orjson.JSONDecodeError, LookupError, TypeError, ValueError):
        raise DecodeError(
            "this should say how far a replay into this namespace has come, but this agentfield cannot read it",
            subject=record.subject,
            revision=record.sequence,
        ) from None
