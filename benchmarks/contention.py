"""Many writers, one key: increments that are never lost, and what they cost in attempts."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import agentfield
from agentfield import Memory
from benchmarks.report import Table, Target
from benchmarks.surroundings import NAMESPACE, Surroundings

_WRITERS = 50
_KEY = "counter"


class _One(int):
    """The number 1, which counts how often it is added to something: each time is an attempt to increment."""

    attempts = 0

    def __radd__(self, other: int) -> int:
        self.attempts += 1
        return other + 1


async def increments(here: Surroundings) -> Table:
    """50 writers, each on a connection of its own, increment one key at once; then the same with a key for each."""
    each = here.scale(200, 20)
    async with AsyncExitStack() as stack:
        writers = [
            await stack.enter_async_context(agentfield.connect(here.url, namespace=NAMESPACE)) for _ in range(_WRITERS)
        ]
        found = {
            f"{_WRITERS} writers, one key": await _race(writers, [_KEY] * _WRITERS, each),
            f"{_WRITERS} writers, a key each": await _race(writers, [f"{_KEY}_{n}" for n in range(_WRITERS)], each),
        }
        total = await writers[0].get(_KEY)
    table = Table(
        f"{_WRITERS} writers × {each} increments", ("s", "a second", "attempts a success", "most attempts for one")
    )
    for name, (seconds, attempts, most) in found.items():
        row = seconds, _WRITERS * each / seconds, attempts / (_WRITERS * each), most
        targets = [Target(total, "≥", _WRITERS * each, "in the end")] if name.endswith("one key") else []
        table.add(name, *row, targets=targets)
    return table


async def _race(writers: list[Memory], keys: list[str], each: int) -> tuple[float, int, int]:
    """Seconds, attempts altogether, and the most attempts that one increment took."""

    async def work(memory: Memory, key: str) -> tuple[int, int]:
        attempts = most = 0
        for _ in range(each):
            one = _One(1)
            await memory.increment(key, one)
            attempts += one.attempts
            most = max(most, one.attempts)
        return attempts, most

    begun = time.perf_counter()
    counts = await asyncio.gather(*(work(memory, key) for memory, key in zip(writers, keys, strict=True)))
    return time.perf_counter() - begun, sum(count for count, _ in counts), max(most for _, most in counts)
