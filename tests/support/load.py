"""Writers under load, and a verdict on what became of every one of their writes."""

import asyncio

from agentfield import AgentFieldError, Memory, OutcomeUnknownError


class Load:
    """Writers that each count one key up until `stop` is set."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, list[tuple[int, int]]] = {}
        """For each key the revision and the number of every write that was acknowledged."""
        self.unknown: set[tuple[str, int]] = set()
        """The key and number of every write whose outcome was open."""
        self.refused: list[AgentFieldError] = []
        """Whatever else a write raised."""
        self.stop = asyncio.Event()

    async def write(self, memory: Memory, key: str) -> None:
        """One writer."""
        number = 0
        while not self.stop.is_set():
            number += 1
            try:
                revision = await memory.set(key, number)
            except OutcomeUnknownError:
                self.unknown.add((key, number))
            except AgentFieldError as error:
                self.refused.append(error)
            else:
                self.acknowledged.setdefault(key, []).append((revision, number))

    @property
    def count(self) -> int:
        """How many writes were acknowledged."""
        return sum(map(len, self.acknowledged.values()))

    def passed(self, count: int) -> bool:
        """Whether more than that were acknowledged."""
        return self.count > count

    async def judge(self, memory: Memory) -> None:
        """Every acknowledged write is in the log, where it was said to be, once; nothing is there that nobody wrote."""
        for key, writes in self.acknowledged.items():
            stored = [(event.revision, event.data) async for event in memory.history(key)]
            numbers = [number for _, number in stored]
            assert len(numbers) == len(set(numbers)), f"{key}: something was stored twice"
            assert set(writes) <= set(stored), f"{key}: lost {set(writes) - set(stored)}"
            surplus = {(key, number) for _, number in set(stored) - set(writes)}
            assert surplus <= self.unknown, f"{key}: nobody was told of {surplus - self.unknown}"
            assert await memory.get(key) == numbers[-1]
