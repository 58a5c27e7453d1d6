"""Projecting: how many events a second become a view, and how much memory that takes."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from typing import Any

import psutil

from agentfield import Event
from benchmarks.consuming import raw_consumer
from benchmarks.measuring import Span, rates
from benchmarks.report import Table, Target
from benchmarks.surroundings import NAMESPACE, PATIENCE, VALUE, Surroundings
from projections import Projection, Runner, Source, open_store
from projections.metrics import Metrics
from projections.timeline import Timeline

_KEYS = 1000
_FILTER = f"{NAMESPACE}.memory.global.global.event.>"
_LOOK = 0.1


class Latest(Projection):
    """The row of every key, and how often it was written: what most views do with an event."""

    name = "latest"
    patterns = "event_*"

    def prepare(self, view: Any) -> None:
        view.execute("CREATE TABLE latest (key TEXT PRIMARY KEY, writes INTEGER, mood TEXT, number INTEGER, at TEXT)")

    def apply(self, event: Event, view: Any) -> None:
        view.execute(
            "INSERT INTO latest VALUES (?, 1, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "writes = writes + 1, mood = excluded.mood, number = excluded.number, at = excluded.at",
            (event.key, event.data["mood"], event.data["number"], event.data["analyzed_at"]),
        )


async def _filled(here: Surroundings, amount: int, *, start: int = 0) -> None:
    async with here.agent() as writer:
        for begin in range(start, start + amount, _KEYS):
            await writer.memory.set_many(
                {f"event_{key}": {**VALUE, "number": begin + key} for key in range(_KEYS)}, scope="global"
            )


async def projected(here: Surroundings) -> Table:
    """A projection into SQLite from the start of the log, against a raw consumer that decodes the same events."""
    amount = here.scale(40_000, 10_000)
    numbers = itertools.count()
    await _filled(here, amount)
    async with here.raw() as client, Source.open(here.url, namespace=NAMESPACE) as source:

        def projecting(kind: type[Projection]) -> Any:
            async def project() -> Span:
                store = open_store(here.home / f"views-{next(numbers)}")
                begun = time.perf_counter()
                await Runner(source, kind(), store).catch_up()
                return Span(amount, time.perf_counter() - begun)

            return project

        contestants = {"raw": raw_consumer(client.jetstream(timeout=PATIENCE), _FILTER, amount)}
        contestants |= {kind.name: projecting(kind) for kind in (Latest, Timeline, Metrics)}
        found = await rates(contestants, rounds=here.scale(6, 3))
    table = Table(f"{amount:,} events into a view in SQLite", ("events a second",))
    table.add("raw pull consumer, decodes only", found["raw"].typical, ratio=1.0)
    for name, what in (("latest", "a table by key"), ("timeline", "timeline"), ("metrics", "metrics")):
        ratio = found[name].ratio_to(found["raw"])
        targets = [Target(ratio, "≥", 0.5, "× raw")] if name == "latest" else []
        table.add(what, found[name].typical, ratio=ratio, targets=targets)
    table.remarks.append("The timeline keeps every value and an index of its words; metrics keep three rows an event.")
    return table


async def memory_of_projecting(here: Surroundings) -> Table:
    """How much memory the process takes while it projects, by how far it has come."""
    amount = here.scale(1_000_000, 50_000)
    await _filled(here, amount)
    process = psutil.Process(os.getpid())
    taken: list[tuple[int, float]] = []
    async with Source.open(here.url, namespace=NAMESPACE) as source:
        store = open_store(here.home / "views")
        runner = Runner(source, Latest(), store)
        task = asyncio.create_task(runner.catch_up())
        begun = time.perf_counter()
        while not task.done():
            view = await store.live(Latest.name)
            if view is not None:
                taken.append(((await view.head()).events, process.memory_info().rss / 1e6))
                await view.aclose()
            await asyncio.wait({task}, timeout=_LOOK)
        seconds = time.perf_counter() - begun
        await task
    table = Table(f"memory while {amount:,} events are projected", ("MB", "events a second"))
    early = max(size for events, size in taken if events <= amount * 0.2)
    late = max(size for events, size in taken if events >= amount * 0.8)
    table.add("in the first fifth", early)
    growth = Target(late / early, "≤", 1.1, "× the first fifth")
    table.add("in the last fifth", late, amount / seconds, targets=[Target(late, "<", 300, "MB"), growth])
    table.remarks.append("Resident memory of the whole process, which has also written the events beforehand.")
    return table
