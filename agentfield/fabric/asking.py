"""Asking a stream for what it holds: one server by direct get, the leader, or whichever replica can prove itself.

Owns: the requests, their pages, and asking again until an answer is to be trusted. Must not know: when which way is
right, what was trimmed. Invariants: no answer is behind the floor that was asked for; "nothing" is never said because a
replica was behind or something was out of order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import orjson

from agentfield.codec import Record
from agentfield.errors import UnavailableError
from agentfield.fabric import records
from agentfield.fabric.faults import (
    Fault,
    error_of,
)
from agentfield.fabric.jetstream import API, backoff, patiently
from agentfield.fabric.leader import leader_get
from agentfield.fabric.stream import Stream
from agentfield.fabric.wire.client import DESCRIPTION
from agentfield.fabric.wire.message import Message

T = TypeVar("T")

MULTI_LAST_LIMIT = 1024
"""Subjects that one multi-get may answer (the server says 413 above)."""
_COMPLETE, _NOTHING, _TOO_MANY = 204, 404, 413
"""The statuses with which a multi-get ends. The second is also said when a message that is there cannot be read."""
_NO_RESULTS = "No Results"
_PAGE = MULTI_LAST_LIMIT
"""Each page costs the server the whole search again."""
_PAGE_BYTES = 16 * 1024 * 1024


class _Page(NamedTuple):
    records: list[Record]
    up_to: int
    pending: int
    status: int


class Asking:
    """What one stream is asked, over its connection, for as long as its timeout says."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._direct = f"{API}.DIRECT.GET.{stream.stream}"

    async def direct_last(self, subject: str) -> Record | None:
        """The last event of a literal subject, as the server that answers has it. Raises :class:`UnavailableError`."""
        connection = self._stream.connection
        answer = await self._patiently(lambda limit: connection.request(f"{self._direct}.{subject}", timeout=limit))
        if answer.status == _NOTHING:
            return None
        if answer.status:
            raise UnavailableError(
                f"reading {subject!r}: the server says {answer.status} {answer.headers.get(DESCRIPTION, '')}"
            )
        return records.of_direct(answer)

    async def leader_get(self, body: dict[str, Any]) -> Record | None:
        """The one event that this request (``STREAM.MSG.GET``) means, as the leader has it; None if there is none."""
        stream = self._stream
        doing = f"reading {stream.stream}"
        return await leader_get(stream.connection, stream.stream, body, doing=doing, patience=stream.timeout)

    async def multi_last(
        self, filters: Sequence[str], *, up_to: int | None = None, floor: int | None = None
    ) -> list[Record] | None:
        """All last events of the filters in pages, None when there are too many.

        Never behind ``floor``; by default, never behind the leader.
        """
        if floor is None:
            if up_to is not None:
                floor = up_to
            else:
                floor = 0 if self._stream.alone else int((await self._stream.state())["last_seq"])
        page = await self._proven_page(filters, up_to, 0, floor)
        if page.status == _TOO_MANY:
            return None
        found = page.records
        while page.pending > 0:
            page = await self._proven_page(filters, page.up_to, found[-1].sequence + 1, page.up_to)
            found.extend(page.records)
        return found

    async def subjects(self, filters: Sequence[str], *, most: int, floor: int) -> list[str] | None:
        """The subjects that match and have events, as of ``floor`` at least; None if there are more than ``most``."""
        page = await self._proven_page(filters, None, 0, floor, batch=most + 1)
        if page.status == _TOO_MANY or page.pending > 0 or len(page.records) > most:
            return None
        return [record.subject for record in page.records]

    async def first_of(self, subject_filter: str) -> Record | None:
        """The first event that is left on any subject that matches, as the leader knows it."""
        return await self.leader_get({"seq": 1, "next_by_subj": subject_filter})

    async def _proven_page(
        self, filters: Sequence[str], up_to: int | None, start: int, floor: int, *, batch: int = _PAGE
    ) -> _Page:
        """A page from a replica that has reached ``floor``; asks again while others answer."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._stream.timeout
        attempt = 0
        while True:
            page = await self._page(filters, up_to, start, batch)
            if page.status == _TOO_MANY or (page.status == _COMPLETE and page.up_to >= floor and page.records):
                return page
            nothing = page.status == _NOTHING and not start  # a later page was promised something
            alone = floor == 0 or self._stream.alone
            if nothing and (alone or await self._nothing_matches(filters, floor, up_to)):
                return page
            pause = backoff(attempt)
            attempt += 1
            if loop.time() + pause >= deadline:
                raise UnavailableError(
                    f"reading {self._stream.stream}: no replica caught up to {floor} within {self._stream.timeout:g} s "
                    f"(the last one said {page.status})"
                )
            await asyncio.sleep(pause)

    async def _nothing_matches(self, filters: Sequence[str], floor: int, up_to: int | None) -> bool:
        """Whether "no results" is the truth, and not a replica that has not reached ``floor`` yet: ask the leader."""
        firsts = await asyncio.gather(*(self.first_of(subject) for subject in filters))
        return all(record is None or (up_to is not None and record.sequence > up_to) for record in firsts)

    async def _page(self, filters: Sequence[str], up_to: int | None, start: int, batch: int) -> _Page:
        body: dict[str, Any] = {"multi_last": list(filters), "batch": batch, "max_bytes": _PAGE_BYTES}
        if up_to is not None:
            body["up_to_seq"] = up_to
        if start:
            body["seq"] = start
        request, connection = orjson.dumps(body), self._stream.connection
        answer = await self._patiently(
            lambda limit: connection.request_many(self._direct, request, timeout=limit, last=_is_end)
        )
        end = answer.pop()
        if end.status == _NOTHING and end.headers.get(DESCRIPTION) != _NO_RESULTS:
            raise UnavailableError(f"reading {self._stream.stream}: the server says {end.headers.get(DESCRIPTION)!r}")
        return _Page(
            [records.of_direct(message) for message in answer],
            int(end.headers.get("Nats-UpTo-Sequence", 0)),
            int(end.headers.get("Nats-Num-Pending", 0)),
            end.status,
        )

    async def _patiently(self, ask: Callable[[float], Awaitable[T]]) -> T:
        """Ask until there is an answer or the stream's timeout is over; reads may be repeated freely."""
        try:
            return await patiently(ask, self._stream.timeout)
        except (Fault, UnavailableError) as fault:
            raise error_of(fault, f"reading {self._stream.stream} within {self._stream.timeout:g} s") from None


def _is_end(message: Message) -> bool:
    """The end of a multi-get's answers: any status message (204 done, 404 nothing, 413 too many)."""
    return message.status != 0
