"""What several processes do to one key could have been done one after the other, whatever happens to the servers."""

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import pytest

from tests.support import Cluster, NatsServer
from tests.support.linearizability import Operation, check
from tests.support.running import program

REGISTERS, CLIENTS = 3, 2
PROCESSES = 3

Note = dict[str, Any]


async def record(urls: list[str], namespace: str, seconds: float, weather: Callable[[], Awaitable[None]]) -> list[Note]:
    """Let clients in several processes work while the weather changes; return what they noted."""
    async with AsyncExitStack() as stack:
        running = []
        for number in range(PROCESSES):
            rotated = ",".join(urls[number % len(urls) :] + urls[: number % len(urls)])
            arguments = (rotated, namespace, REGISTERS, CLIENTS, seconds)
            running.append(await stack.enter_async_context(program("register", *arguments)))
        await weather()
        notes = []
        for each in running:
            while line := await each.line(within=seconds + 30):
                notes.append(json.loads(line))
            await each.finish(within=10)
    return notes


def histories(notes: list[Note]) -> dict[str, list[Operation]]:
    """The operations by register."""
    found: dict[str, list[Operation]] = defaultdict(list)
    for note in notes:
        names = ("kind", "called", "returned", "done", "client", "value", "expected", "result")
        fields: dict[str, Any] = {name: note.get(name) for name in names}
        found[note["key"]].append(Operation(**fields))
    return found


def judge(notes: list[Note]) -> None:
    for register, history in histories(notes).items():
        violation = check(history)
        assert violation is None, f"{register}: {violation}"


def counts(notes: list[Note]) -> Counter[tuple[str, bool | None]]:
    return Counter((note["kind"], note["done"]) for note in notes)


async def test_on_one_server_that_is_killed_and_paused(fresh_server: NatsServer, namespace: str) -> None:
    async def weather() -> None:
        await asyncio.sleep(1.5)
        await fresh_server.restart(gracefully=False)
        await asyncio.sleep(1.0)
        await fresh_server.pause()
        await asyncio.sleep(4.0)  # for longer than the clients wait
        await fresh_server.resume()

    notes = await record([fresh_server.url], namespace, 9.0, weather)
    judge(notes)
    seen = counts(notes)
    assert min(seen["read", True], seen["write", True], seen["cas", True], seen["cas", False]) > 5, seen
    assert _longest_silence(notes) > 1.0, "the pause was felt"


@pytest.mark.slow
async def test_on_three_servers_whose_leader_is_killed_and_paused(cluster: Cluster, namespace: str) -> None:
    stream = f"{namespace.upper()}_MEMORY"
    doubtful: list[tuple[float, float]] = []

    async def weather() -> None:
        await asyncio.sleep(1.5)
        leader = await cluster.stream_leader(stream)
        await leader.kill()
        await cluster.stream_leader(stream)
        await leader.start()
        await asyncio.sleep(2.0)
        leader = await cluster.stream_leader(stream)
        await leader.pause()
        await cluster.stream_leader(stream)
        await asyncio.sleep(1.0)
        resumed = time.monotonic()
        await leader.resume()
        # Until it hears of its successor, a leader that was paused answers as if it still were one.
        doubtful.append((resumed, resumed + 2.0))

    notes = await record(cluster.urls, namespace, 26.0, weather)
    certain = [note for note in notes if note.get("mode") != "strong" or not _within(note, doubtful)]
    judge(certain)
    seen = counts(notes)
    assert min(seen["read", True], seen["write", True], seen["cas", True]) > 30, seen
    assert doubtful[0][0] < max(note["returned"] for note in notes), "they still worked when the old leader came back"
    replicas = [note for note in notes if note["kind"] == "write" and note["done"] and note["called"] > doubtful[0][1]]
    assert replicas, "and afterwards, too"


def _longest_silence(notes: list[Note]) -> float:
    """The longest time in which no operation began and succeeded."""
    begun = sorted(float(note["called"]) for note in notes if note["done"])
    return max(later - earlier for earlier, later in pairwise(begun))


def _within(note: Note, spans: list[tuple[float, float]]) -> bool:
    return any(note["called"] <= end and note["returned"] >= begin for begin, end in spans)
