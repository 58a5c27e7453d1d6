"""A durable consumer of a test's own, and instances of it that handle what comes, or hold it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from agentfield.fabric.consumers.consumer import PinnedConsumer
from agentfield.fabric.consumers.consuming import Activated, Consumer, ConsumerSpec, Shortened, Start
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from tests.support.events import subject
from tests.support.waiting import eventually

_C = TypeVar("_C", bound=Consumer)


def spec(fabric: Fabric, *heard: str, start: Start = "all") -> ConsumerSpec:
    return ConsumerSpec("consumer", tuple(subject(fabric, each) for each in heard or ("k.>",)), start)


async def info(fabric: Fabric) -> dict[str, Any]:
    return await api(fabric.connection, f"CONSUMER.INFO.{fabric.log.stream}.consumer")


async def floor(fabric: Fabric) -> int:
    return int((await info(fabric))["ack_floor"]["stream_seq"])


async def delete(fabric: Fabric) -> None:
    await api(fabric.connection, f"CONSUMER.DELETE.{fabric.log.stream}.consumer")


class Instance(Generic[_C]):
    """A consumer with a task that runs it and, unless `hold` is set, one that handles what it gives at once."""

    def __init__(self, consumer: _C) -> None:
        self.consumer = consumer
        self.activations: list[int] = []
        self.handled: list[int] = []
        self.skipped: list[int] = []
        self.held: list[int] = []
        self.gaps: list[Shortened] = []
        self.hold = False
        self._tasks = [asyncio.create_task(consumer.run()), asyncio.create_task(self._take())]

    async def _take(self) -> None:
        while True:
            item = await self.consumer.next()
            if isinstance(item, Activated):
                self.activations.append(item.floor)
                continue
            if isinstance(item, Shortened):
                self.gaps.append(item)
                await self.consumer.reported(item)
                continue
            sequence = item.record.sequence
            if item.handled:
                self.skipped.append(sequence)
            elif self.hold:
                self.held.append(sequence)
                continue
            else:
                self.handled.append(sequence)
            self.consumer.done(sequence)

    def finish(self) -> None:
        """Handle everything held."""
        held, self.held = self.held, []
        for sequence in held:
            self.handled.append(sequence)
            self.consumer.done(sequence)

    async def reached(self, sequence: int, within: float = 10) -> None:
        await eventually(lambda: self.handled[-1:] == [sequence], within=within, what=f"handled up to {sequence}")

    async def end(self) -> None:
        """Stop at once, as if a task had been cancelled: nothing is drained."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def instance(
    fabric: Fabric, *heard: str, start: Start = "all", hold: bool = False
) -> AsyncIterator[Instance[PinnedConsumer]]:
    consumer = PinnedConsumer(fabric.log, spec(fabric, *heard, start=start))
    await consumer.ensure()
    running = Instance(consumer)
    running.hold = hold
    try:
        yield running
    finally:
        await running.end()
        await consumer.leave()
