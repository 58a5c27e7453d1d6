"""What a view has to survive: the death of who projects, at any moment, and several who would."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from agentfield import Memory, connect
from tests.support import NatsServer, eventually
from tests.support.projecting import chains_in, checkpoint_in, folded, rows
from tests.support.running import program

KILLS = int(os.environ.get("AGENTFIELD_TEST_KILLS", "15"))
EVENTS = int(os.environ.get("AGENTFIELD_TEST_EVENTS", "20000"))
KEYS = 200


async def write(memory: Memory, count: int, *, start: int = 0) -> int:
    revision = 0
    for begin in range(start, start + count, KEYS):
        revision = await memory.set_many({f"item_{number % KEYS}": number for number in range(begin, begin + KEYS)})
    return revision


@pytest.mark.timeout(60 + 10 * KILLS)
async def test_a_projector_killed_at_random_moments_leaves_a_view_that_is_the_fold_exactly(
    server: NatsServer, namespace: str, tmp_path: Path
) -> None:
    path = tmp_path / "chain.sqlite"
    randomly = random.Random(15)
    stood: list[int] = []
    async with connect(server.url, namespace=namespace) as memory:
        last = await write(memory, EVENTS)
        for number in range(KILLS):
            async with program("projector", server.url, namespace, tmp_path, "once") as projector:
                before = checkpoint_in(path)
                # Not before it has advanced, so that it is killed at work, and not long after, so that work is left.
                await eventually(lambda: checkpoint_in(path) > before, within=20)  # noqa: B023
                await asyncio.sleep(0.03 * randomly.random())
                await projector.kill()
            stood.append(checkpoint_in(path))
            if number == KILLS // 2:
                last = await write(memory, EVENTS // 10, start=EVENTS)
        assert stood == sorted(set(stood)), "a killed projector took something back, or never came to work"
        assert stood[-1] < last, "the last one to be killed had nothing left to do"
        async with program("projector", server.url, namespace, tmp_path, "once") as projector:
            await projector.finish(within=30)
        assert checkpoint_in(path) == last
        assert chains_in(path) == await folded(memory.history("item_*"))
        assert rows(path, "SELECT events FROM _projection") == [(EVENTS + EVENTS // 10,)]


async def test_of_two_instances_one_works_and_the_other_takes_over_when_it_dies(
    server: NatsServer, namespace: str, tmp_path: Path
) -> None:
    path = tmp_path / "chain.sqlite"
    async with connect(server.url, namespace=namespace) as memory:
        async with program("projector", server.url, namespace, tmp_path, "run") as first:
            last = await write(memory, 400)
            await eventually(lambda: checkpoint_in(path) == last, within=20)
            async with program("projector", server.url, namespace, tmp_path, "run"):
                last = await write(memory, 400, start=400)
                await eventually(lambda: checkpoint_in(path) == last, within=10)
                await first.kill()
                last = await write(memory, 400, start=800)
                await eventually(lambda: checkpoint_in(path) == last, within=10)
        assert chains_in(path) == await folded(memory.history("item_*"))


async def test_an_instance_that_was_paused_changes_nothing_when_it_wakes_up_behind_another(
    server: NatsServer, namespace: str, tmp_path: Path
) -> None:
    path = tmp_path / "chain.sqlite"
    async with (
        connect(server.url, namespace=namespace) as memory,
        program("projector", server.url, namespace, tmp_path, "run") as first,
    ):
        last = await write(memory, 400)
        await eventually(lambda: checkpoint_in(path) == last, within=20)
        first.pause()
        try:
            last = await write(memory, 2000, start=400)
            async with program("projector", server.url, namespace, tmp_path, "run"):
                await eventually(lambda: checkpoint_in(path) == last, within=20)
                first.resume()
                last = await write(memory, 2000, start=2400)
                await eventually(lambda: checkpoint_in(path) == last, within=20)
        finally:
            first.resume()
        last = await write(memory, 400, start=4400)
        await eventually(lambda: checkpoint_in(path) == last, within=20)
        assert chains_in(path) == await folded(memory.history("item_*"))
