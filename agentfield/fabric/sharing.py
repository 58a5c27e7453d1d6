"""Reads that begin in the same turn of the event loop, asked as one question.

Owns: which waiting reads share a request, and handing each its part of the answer. Must not know: how the log is asked.
Invariants: a question is sent only after every read that it answers has begun, so none is answered from before its
call; whatever fails, fails for every read that shared it, and a read that is cancelled costs the others nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from copy import copy

from agentfield.codec import Record

_Answered = asyncio.Future[dict[str, Record]]
Ask = Callable[[Sequence[str]], Awaitable[list[Record]]]
"""The last events of these literal subjects, those that there are."""

_SUBJECTS = 256
"""Subjects in one question: the server answers them one after the other, and other clients wait meanwhile."""


class SharedReads:
    """Makes one question of the reads that many tasks begin at once: most of a small read's cost is the message."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._waiting: list[tuple[Sequence[str], _Answered]] = []
        self._asking: set[asyncio.Task[None]] = set()
        self._alone = False

    async def last(self, subjects: Sequence[str]) -> list[Record | None]:
        """The last event of each subject, as of an instant not before the call. Raises what asking raises."""
        if not (self._alone or self._waiting or self._asking):  # nobody to share with: ask without a detour
            self._alone = True
            try:
                return _picked(subjects, _by_subject(await self._ask(subjects)))
            finally:
                self._alone = False
        loop = asyncio.get_running_loop()
        answered: _Answered = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append((subjects, answered))
        return _picked(subjects, await answered)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        while waiting:
            subjects: dict[str, None] = {}
            taken = 0
            for wanted, _ in waiting:
                if taken and len(subjects) + len(wanted) > _SUBJECTS:
                    break
                subjects.update(dict.fromkeys(wanted))
                taken += 1
            answered = [each for _, each in waiting[:taken] if not each.cancelled()]
            del waiting[:taken]
            if answered:
                task = asyncio.create_task(self._answer(list(subjects), answered), name="agentfield shared read")
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    async def _answer(self, subjects: Sequence[str], answered: Sequence[_Answered]) -> None:
        try:
            found = _by_subject(await self._ask(subjects))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is for those who wait
            for each in answered:
                if not each.done():
                    each.set_exception(copy(error))
        else:
            for each in answered:
                if not each.done():
                    each.set_result(found)
        finally:
            for each in answered:
                each.cancel()  # at the loop's end; without effect on what is done


def _by_subject(records: Sequence[Record]) -> dict[str, Record]:
    return {record.subject: record for record in records}


def _picked(subjects: Sequence[str], found: dict[str, Record]) -> list[Record | None]:
    return [found.get(subject) for subject in subjects]
