"""Views in KV buckets on the server, which any NATS client reads: one bucket for each generation.

Owns: the head as a key of the bucket, and the transaction: what a fold puts is held back, then stored in one atomic
batch with the head, under the expectation that the head is the one that was read. Which generation is live is written
on the bucket itself. A third door to the inside of agentfield.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from agentfield import InvalidInputError
from agentfield.fabric.batch import Expectation
from agentfield.fabric.view_bucket import MAX_BATCH, BatchItem, Conflict, Described, ViewBucket, described
from agentfield.key import key_of, key_tokens
from agentfield.value import decode_value, encode_value
from projections.projection import Selection, check_name
from projections.source import Source
from projections.view import Fold, Head, Moment, Moved, Step, TooMuch

T = TypeVar("T")

KIND = "bucket"
_HEAD = "=head"
"""The head's key: none of ours is written like this."""
_KEPT = 10_000
"""Values that are kept at hand, so that a fold asks for few."""
_DELETED = {"KV-Operation": "DEL"}


class BucketTransaction:
    """What ``apply`` works on: the keys of a bucket inside the runner's transaction. Keys are as in memory."""

    def __init__(self, bucket: ViewBucket, kept: dict[str, Any]) -> None:
        self._bucket = bucket
        self._kept = kept
        self.changed: dict[str, bytes | None] = {}
        """What is to be stored, by subject; None for a delete."""

    async def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default."""
        subject = self._subject(key)
        if subject not in self._kept:
            record = await self._bucket.last(subject)
            gone = record is None or record.headers.get("KV-Operation") is not None
            self._kept[subject] = None if gone or record is None else record.payload
        payload = self._kept[subject]
        return default if payload is None else decode_value(payload)

    def put(self, key: str, value: Any) -> None:
        """Set the value of a key. Raises InvalidInputError for what JSON cannot hold."""
        subject = self._subject(key)
        self.changed[subject] = self._kept[subject] = encode_value(value)

    def delete(self, key: str) -> None:
        """Take a key's value away."""
        subject = self._subject(key)
        self.changed[subject] = self._kept[subject] = None

    def _subject(self, key: str) -> str:
        return f"{self._bucket.prefix}{key_tokens(key)}"


class BucketView:
    """One generation of a view in a bucket."""

    def __init__(self, bucket: ViewBucket) -> None:
        self._bucket = bucket
        self._kept: dict[str, Any] = {}
        self._turn = asyncio.Lock()
        self.temporary = False
        self._stale = False

    @property
    def kind(self) -> str:
        """What it is."""
        return KIND

    @property
    def place(self) -> str:
        """The bucket's name."""
        return self._bucket.name

    def good(self) -> bool:
        """Whether it may be advanced, as far as is known: each transaction finds out."""
        return not self._stale

    async def head(self) -> Head:
        """Where it stands."""
        return (await self._read())[0]

    async def found(self, head: Head, prepare: Fold) -> None:
        """Fill an empty bucket: the head, and what the projection prepares. Somebody else may be first."""
        try:
            await self._write(head, 0, prepare)
        except Moved:
            return

    async def advance(self, step: Step, fold: Fold) -> None:
        """Apply and move, both or neither."""
        async with self._turn:
            head, sequence = await self._read()
            if head.checkpoint != step.expected or head.paused or head.erased != step.erased:
                raise Moved(f"bucket {self.place} is not at {step.expected}, or is paused, or something was erased")
            moved = replace(
                head,
                checkpoint=step.checkpoint,
                events=head.events + step.events,
                skipped=head.skipped + step.skipped,
                error=None,
                failed_at=None,
            )
            await self._write(moved, sequence, fold)

    async def stop(self, error: str, sequence: int | None) -> None:
        """Note why it does not advance."""
        await self._change(error=error, failed_at=sequence)

    async def pause(self, paused: bool) -> None:
        """Let nobody advance it, or let it go on."""
        await self._change(paused=paused)

    async def forget(self, revision: int, fold: Fold | None) -> bool:
        """Only where nothing is to be taken out: the server keeps what is replaced in its files for a while."""
        if fold is None:
            await self._change(erased=revision)
        return fold is None

    @asynccontextmanager
    async def frozen(self, *, alone: bool = False) -> AsyncIterator[Moment]:
        """All it holds, at one moment; ``alone``: paused during the block, since a bucket cannot be locked."""
        if alone:
            before = await self.head()
            await self._change(paused=True)
            try:
                yield Moment(await self.head(), {})
            finally:
                if not before.paused and await self.exists():
                    await self._change(paused=False)
            return
        while True:
            head, sequence = await self._read()
            content = {
                key_of(record.subject.removeprefix(self._bucket.prefix)): decode_value(record.payload)
                async for record in self._bucket.read()
                if record.subject != self._head_subject and not record.headers.get("KV-Operation")
            }
            if (await self._read())[1] == sequence:
                break  # else it moved on while it was read
        yield Moment(head, content)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What a function gives that looks at a frozen view's content."""
        return await asyncio.to_thread(function, *arguments)

    def rows(self, view: Any) -> Iterable[Sequence[Any]]:
        """Every key with its value, in the order of keys."""
        return sorted(view.items())

    async def rest(self) -> None:
        """Nothing to do: anybody may read a bucket."""

    async def aclose(self) -> None:
        """Nothing to close; a temporary one is removed."""
        if self.temporary:
            self.temporary = False
            await self._bucket.remove()

    @property
    def _head_subject(self) -> str:
        return f"{self._bucket.prefix}{_HEAD}"

    async def exists(self) -> bool:
        """Whether it is there, with a head."""
        try:
            await self._read()
        except Moved:
            return False
        return True

    async def _read(self) -> tuple[Head, int]:
        record = await self._bucket.last(self._head_subject)
        if record is None:
            self._stale = True
            raise Moved(f"bucket {self.place} is gone")
        return _head_of(json.loads(record.payload)), record.sequence

    async def _change(self, **fields: Any) -> None:
        """Change facts of the head, whoever advances it meanwhile."""
        while True:
            head, sequence = await self._read()
            try:
                await self._write(replace(head, **fields), sequence, _nothing)
                return
            except Moved:
                continue

    async def _write(self, head: Head, sequence: int, fold: Fold) -> None:
        """Run a fold, and store what it changed with the head, if that is still where it was."""
        content = BucketTransaction(self._bucket, self._kept)
        try:
            awaitable = await asyncio.to_thread(fold, content)
            if inspect.isawaitable(awaitable):
                await awaitable
            if len(content.changed) >= MAX_BATCH:
                raise TooMuch(f"{len(content.changed)} keys at once, of which {MAX_BATCH - 1} fit")
            subject = self._head_subject
            items = [BatchItem(subject, _payload_of(head), {}, Expectation(subject, sequence))]
            items += [
                BatchItem(each, b"" if payload is None else payload, _DELETED if payload is None else {})
                for each, payload in content.changed.items()
            ]
            try:
                await self._bucket.write(items)
            except InvalidInputError as error:  # one of them is over the server's limit
                raise TooMuch(str(error)) from None
        except Conflict as conflict:
            self._kept.clear()
            raise Moved(f"bucket {self.place}: {conflict}") from None
        except BaseException:
            self._kept.clear()  # it holds what was not stored, or may not have been
            raise
        if len(self._kept) > _KEPT:
            self._kept.clear()


class Buckets:
    """The views on the server of one source."""

    def __init__(self, source: Source) -> None:
        self._connection = source.fabric.connection
        self._prefix = f"{source.namespace}-view-"
        self._namespace = source.namespace

    def identity(self, kind: str) -> str:
        """There is one place for buckets in a namespace."""
        return KIND

    async def names(self) -> list[str]:
        """The views that there are."""
        return sorted({each.facts["view"] for each in await self._generations() if _is_live(each)})

    async def live(self, name: str) -> BucketView | None:
        """The live generation of a view, or None."""
        number = await self._live(check_name(name))
        return None if number is None else self._view(name, number)

    async def building(self, name: str) -> BucketView | None:
        """The generation that a rebuild has begun, or None."""
        live = await self._live(check_name(name))
        found = [_number(each) for each in await self._generations(name)]
        if live is None or max(found) <= live:
            return None
        view = self._view(name, max(found))
        if await view.exists():
            return view
        await self.discard(name, max(found))  # whoever made it died before it had a head
        return None

    async def create(self, kind: str, head: Head, prepare: Fold) -> BucketView:
        """A new, empty generation: the first, which is live at once, or the one after the live one."""
        generations = await self._generations(head.name)
        first = not any(map(_is_live, generations))
        number = 1 + max(map(_number, generations), default=0)
        bucket = self._bucket(head.name, number)
        await bucket.create({"projections": self._namespace, "view": head.name, "generation": str(number)})
        view = self._view(head.name, number)
        await view.found(replace(head, generation=number), prepare)
        if first:
            await bucket.describe({"live": "true"})
        return view

    async def scratch(self, kind: str, head: Head, prepare: Fold) -> BucketView:
        """An empty view of nobody's, which is gone when it is closed."""
        bucket = ViewBucket(self._connection, f"{self._prefix}{head.name}-scratch-{secrets.token_hex(4)}")
        await bucket.create({}, lasting=False)
        view = BucketView(bucket)
        view.temporary = True
        await view.found(head, prepare)
        return view

    async def switch(self, name: str, generation: int) -> None:
        """Make a generation the live one; the one before it is removed."""
        await self._bucket(name, generation).describe({"live": "true"})
        for each in await self._generations(name):
            if _number(each) < generation:
                await self._bucket(name, _number(each)).remove()

    async def discard(self, name: str, generation: int) -> None:
        """Remove a generation that is not live."""
        await self._bucket(name, generation).remove()

    async def tidy(self, name: str) -> None:
        """Remove generations before the live one. Scratch buckets lie in the server's memory alone."""
        live = await self._live(check_name(name))
        for each in await self._generations(name) if live is not None else ():
            if live is not None and _number(each) < live:
                await self._bucket(name, _number(each)).remove()

    async def remove(self, name: str) -> bool:
        """Remove a view with all its generations; whether there was one."""
        generations = await self._generations(check_name(name))
        for each in generations:
            await self._bucket(name, _number(each)).remove()
        return any(map(_is_live, generations))

    def _view(self, name: str, number: int) -> BucketView:
        return BucketView(self._bucket(name, number))

    def _bucket(self, name: str, number: int) -> ViewBucket:
        return ViewBucket(self._connection, f"{self._prefix}{name}-{number}")

    async def _live(self, name: str) -> int | None:
        return max((_number(each) for each in await self._generations(name) if _is_live(each)), default=None)

    async def _generations(self, name: str | None = None) -> list[Described]:
        return [
            each
            for each in await described(self._connection)
            if each.facts.get("projections") == self._namespace and name in (None, each.facts["view"])
        ]


def _is_live(generation: Described) -> bool:
    return generation.facts.get("live") == "true"


def _number(generation: Described) -> int:
    return int(generation.facts["generation"])


def _payload_of(head: Head) -> bytes:
    fields = asdict(head) | {"selection": head.selection.fields(), "updated": datetime.now(UTC).isoformat()}
    return json.dumps(fields).encode()


def _head_of(fields: Mapping[str, Any]) -> Head:
    selection = Selection.from_fields(fields["selection"])
    return Head(**{**fields, "selection": selection, "updated": datetime.fromisoformat(fields["updated"])})


def _nothing(_: Any) -> None:
    """Change nothing but the head."""
