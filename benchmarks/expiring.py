"""A hundred thousand keys that expire in the same second: when they are gone, and what readers see meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

import agentfield
from agentfield import Memory
from agentfield.codec import expires_at_ns, is_delete
from agentfield.fabric.fabric import Fabric
from agentfield.memory.reads import Consistency
from benchmarks.report import Table, Target
from benchmarks.serving import IDLE_AGENT, Peak, served
from benchmarks.surroundings import NAMESPACE, VALUE, Surroundings

_BATCH = 1000
_READERS = 2
_EARLY = 2.0
"""Seconds before the time of the first key at which reading begins."""
_PATIENCE = 120.0
_FLAT = 1.25
"""How much larger than before the agent's process may be at its peak to pass for flat."""


async def expiring(here: Surroundings) -> Table:
    """One idle agent does the expiring; two readers look all the time; lateness is by the log's own times."""
    amount, lead = here.scale(100_000, 10_000), here.scale(150, 25)
    async with served(here, IDLE_AGENT) as agent, agentfield.connect(here.url, namespace=NAMESPACE) as memory:
        fabric = await Fabric.open(here.url, namespace=NAMESPACE, name="bench")
        try:
            first = int((await fabric.log.state())["last_seq"]) + 1
            begun = time.perf_counter()
            due = time.time() + lead
            for begin in range(0, amount, _BATCH):
                values = {f"offer_{number}": VALUE for number in range(begin, begin + _BATCH)}
                await memory.set_many(values, ttl=max(1.0, due - time.time()))
            written = time.perf_counter() - begun
            await asyncio.sleep(max(0.0, due - _EARLY - time.time()))
            gone = asyncio.Event()
            async with Peak(agent) as peak, asyncio.TaskGroup() as tasks:
                readers = [tasks.create_task(_read(here, amount, gone)) for _ in range(_READERS)]
                await _until_gone(fabric, first, amount)
                gone.set()
            latest = [late for reader in readers for late in reader.result()]
            lateness, left = await _lateness(fabric, first)
        finally:
            await fabric.aclose()
    table = Table(f"{amount:,} keys that expire at once", ("",))
    table.add("written with a ttl, a second", amount / written)
    table.add("still there in the end", float(left), targets=[Target(left, "≤", 0, "")])
    table.add("gone after their time, p50 s", _at(lateness, 50))
    table.add(
        "gone after their time, the last, s", _at(lateness, 100), targets=[Target(_at(lateness, 100), "≤", 30, "s")]
    )
    table.add("gone before their time, at most s", max(0.0, -lateness[0]))
    seen_late = [late for late in latest if late > 0]
    table.add("reads meanwhile", float(len(latest)))
    table.add("reads that saw a value late", float(len(seen_late)), targets=[Target(len(seen_late), "≤", 0, "")])
    if seen_late:
        table.add("by how much at most, ms", max(seen_late) * 1000)
    table.add("the agent's size before, MB", peak.before)
    targets = [Target(peak.most / peak.before, "≤", _FLAT, "× before")]
    table.add("at its peak, MB", peak.most, targets=targets)
    return table


async def _read(here: Surroundings, amount: int, gone: asyncio.Event) -> list[float]:
    """Look at keys at random; for every read, by how much it saw a value after its time (negative: it was in time)."""
    found = []
    modes: tuple[Consistency, ...] = ("strong", "cached")
    async with agentfield.connect(here.url, namespace=NAMESPACE) as memory:
        while not gone.is_set():
            for mode in modes:
                found.append(await _late(memory, f"offer_{random.randrange(amount)}", mode))
    return found


async def _late(memory: Memory, key: str, mode: Consistency) -> float:
    asked = time.time()
    entry = await memory.entry(key, consistency=mode)
    if entry is None or entry.expires_at is None:
        return float("-inf")
    return asked - entry.expires_at.timestamp()


async def _until_gone(fabric: Fabric, first: int, amount: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    # Asking is the only way to know: the events of expiry are made by another process.
    while int((await fabric.log.state())["last_seq"]) < first + 2 * amount - 1 and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.2)


async def _lateness(fabric: Fabric, first: int) -> tuple[list[float], int]:
    """Seconds from each key's time to its delete, sorted, and how many keys have none."""
    expected: dict[str, int] = {}
    lateness = []
    async for record in fabric.log.read([f"{NAMESPACE}.memory.global.global.offer.*"], start=first):
        if is_delete(record):
            lateness.append((record.timestamp - expected.pop(record.subject)) / 1e9)
        else:
            expected[record.subject] = expires_at_ns(record) or 0
    return sorted(lateness), len(expected)


def _at(ordered: Sequence[float], percent: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
