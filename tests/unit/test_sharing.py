"""Reads that begin together share a question, and nothing else: not each other's failures, nor their end."""

import asyncio
from collections.abc import Sequence

import pytest

from agentfield.codec import Record
from agentfield.errors import UnavailableError
from agentfield.fabric.sharing import SharedReads


class Log:
    """Answers when it is told to; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.open = asyncio.Event()
        self.error: Exception | None = None

    async def ask(self, subjects: Sequence[str]) -> list[Record]:
        self.asked.append(list(subjects))
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return [Record(subject, 1, 1, {}, b"") for subject in subjects if not subject.startswith("absent")]


async def begun(reads: SharedReads, *wanted: list[str]) -> list[asyncio.Task[list[Record | None]]]:
    tasks = [asyncio.create_task(reads.last(subjects)) for subjects in wanted]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def names(found: list[Record | None]) -> list[str | None]:
    return [None if record is None else record.subject for record in found]


async def test_a_lone_read_is_asked_at_once_and_those_that_begin_meanwhile_share() -> None:
    log = Log()
    reads = SharedReads(log.ask)
    tasks = await begun(reads, ["a", "b"], ["a", "c"], ["absent", "c"])
    assert log.asked == [["a", "b"], ["a", "c", "absent"]]
    log.open.set()
    assert [names(await task) for task in tasks] == [["a", "b"], ["a", "c"], [None, "c"]]
    await begun(reads, ["d"])
    assert log.asked[2:] == [["d"]]


async def test_a_question_is_not_answered_to_a_read_that_begins_after_it_was_sent() -> None:
    log = Log()
    reads = SharedReads(log.ask)
    await begun(reads, ["a"], ["b"])
    await begun(reads, ["b"])
    assert log.asked == [["a"], ["b"], ["b"]]
    log.open.set()


async def test_questions_are_bounded() -> None:
    log = Log()
    reads = SharedReads(log.ask)
    await begun(reads, *([f"{number}.{each}" for each in range(4)] for number in range(201)))
    assert [len(asked) for asked in log.asked] == [4, 256, 256, 256, 32]
    log.open.set()


async def test_a_read_that_is_cancelled_costs_the_others_nothing() -> None:
    log = Log()
    reads = SharedReads(log.ask)
    alone, cancelled, other = await begun(reads, ["a"], ["b"], ["c"])
    cancelled.cancel()
    alone.cancel()
    await asyncio.sleep(0)
    log.open.set()
    assert names(await other) == ["c"]
    assert names(await reads.last(["d"])) == ["d"]


async def test_a_failure_reaches_every_read_that_shared_the_question_as_an_error_of_its_own() -> None:
    log = Log()
    reads = SharedReads(log.ask)
    log.error = UnavailableError("no answer")
    tasks = await begun(reads, ["a"], ["b"], ["c"])
    log.open.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in errors] == ["no answer"] * 3
    assert errors[1] is not errors[2]
    log.error = None
    assert names(await reads.last(["d"])) == ["d"]


async def test_a_defect_ends_the_reads_instead_of_leaving_them_waiting() -> None:
    log = Log()
    reads = SharedReads(log.ask)
    log.error = ZeroDivisionError()
    tasks = await begun(reads, ["a"], ["b"])
    log.open.set()
    with pytest.raises(ZeroDivisionError):
        await tasks[0]
    with pytest.raises(ZeroDivisionError):
        await tasks[1]
