"""Objects whose events never came are found and taken away; those that any event refers to stay for ever."""

import asyncio
import os
import signal
import subprocess
import sys
from datetime import timedelta
from typing import Any

import nats
import orjson
import pytest

from agentfield import Agent, Memory, OutcomeUnknownError, UnavailableError, connect
from agentfield.fabric.batch import append_batch
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.upload import Upload
from agentfield.memory import orphans, writing
from agentfield.memory.lifetimes.sweeping import SWEEP, ensure_sweeps, sweep
from tests.support import NatsServer, eventually
from tests.support.objects import LARGE, condemned, fabric_of, messages, names, object_of

AT_ONCE = timedelta(seconds=-10)
"""As if it were later: the sweeper only counts time that has surely passed by the server's clock."""


async def swept(fabric: Fabric, age: timedelta = AT_ONCE) -> int:
    """Sweep everything there is, however young; return how many objects went."""
    count, checkpoint, done = 0, 0, False
    while not done:
        more, checkpoint, done = await orphans.sweep_objects(fabric, checkpoint, age)
        count += more
    return count


async def orphan(memory: Memory, key: str = "orphan") -> str:
    """Store an object as a write of that key does; its event never comes."""
    fabric = await fabric_of(memory)
    scope = f"{fabric.topology.namespace}.memory.global.global."
    about = orphans.Orphan("", scope + key, int((await fabric.log.state())["last_seq"])).about()
    return (await fabric.objects.put(LARGE.encode(), description=key, about=about)).name


# -- crashes ----------------------------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from agentfield import connect

async def main():
    async with connect(sys.argv[1], namespace=sys.argv[2]) as memory:
        value = "x" * 100_000_000
        print("ready", flush=True)
        await memory.set("report", value)
        print("done", flush=True)

asyncio.run(main())
"""


async def test_a_writer_killed_in_the_middle_leaves_nothing_to_see_and_what_it_left_is_collected(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    await memory.set("report", "before")
    fabric = await fabric_of(memory)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WRITER, server.url, namespace), stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"

        async def under_way() -> bool:
            return await messages(fabric) > 50

        await eventually(under_way, within=20)
        os.kill(process.pid, signal.SIGKILL)
        assert await process.stdout.read() == b"", "it was done before it could be killed"
    finally:
        if process.returncode is None and not process.stdout.at_eof():  # type: ignore[union-attr]
            process.kill()
        await process.wait()
    assert await memory.get("report") == "before"
    assert [event.data async for event in memory.history("report")] == ["before"]
    client = await nats.connect(server.url)
    try:
        store = await client.jetstream().object_store(f"{namespace}-objects")
        assert [info.name for info in await store.list() if not info.deleted] == []
    finally:
        await client.close()
    assert await swept(fabric, timedelta(hours=1)) == 0
    assert await messages(fabric) > 50
    assert await swept(fabric) == 1
    assert await messages(fabric) == 0
    await memory.set("report", LARGE)
    assert await memory.get("report") == LARGE


async def test_a_crash_between_the_object_and_its_event_leaves_an_orphan_that_is_collected(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    async def crashing(*args: Any, **kwargs: Any) -> int:
        raise Crash

    monkeypatch.setattr(writing, "append_batch", crashing)
    with pytest.raises(Crash):
        await memory.set("report", LARGE)
    fabric = await fabric_of(memory)
    assert not await memory.exists("report")
    assert len(await names(fabric)) == 1
    assert await swept(fabric) == 1
    assert await messages(fabric) == 0


# -- what stays -------------------------------------------------------------------------------------------------------


async def test_whatever_an_event_refers_to_stays_for_ever(memory: Memory) -> None:
    for number in range(3):
        await memory.set("overwritten", [LARGE, number])
    await memory.set("deleted", LARGE)
    await memory.delete("deleted")
    await memory.set("cleared", LARGE, scope="session", scope_id="s")
    await memory.clear(scope="session", scope_id="s")
    await memory.set_many({"one": LARGE, "two": LARGE})
    fabric = await fabric_of(memory)
    stored = await names(fabric)
    assert len(stored) == 7
    lone = await orphan(memory)
    assert await swept(fabric) == 1
    assert await names(fabric) == stored
    assert lone not in stored
    assert await condemned(fabric) == 1, "only orphans leave a trace in the log"
    assert [len(event.data) async for event in memory.history("overwritten")] == [2, 2, 2]
    assert await swept(fabric) == 0


async def test_an_orphan_of_a_key_that_was_written_since_is_told_from_its_values(memory: Memory) -> None:
    await memory.set("report", LARGE)
    lone = await orphan(memory, "report")
    for _ in range(5):
        await memory.set("report", 1)
    await memory.set("report", LARGE)
    fabric = await fabric_of(memory)
    stored = await names(fabric) - {lone}
    assert await swept(fabric) == 1
    assert await names(fabric) == stored
    assert await object_of(memory, "report") in stored


async def test_what_is_young_is_left_alone_and_looked_at_again(memory: Memory) -> None:
    fabric = await fabric_of(memory)
    await orphan(memory)
    count, checkpoint, done = await orphans.sweep_objects(fabric, 0, timedelta(hours=1))
    assert (count, checkpoint, done) == (0, 0, True)
    count, checkpoint, done = await orphans.sweep_objects(fabric, checkpoint, AT_ONCE)
    assert (count, done) == (1, True)
    assert checkpoint > 0
    assert await orphans.sweep_objects(fabric, checkpoint, AT_ONCE) == (0, checkpoint, True)


async def test_what_is_still_being_uploaded_is_left_alone_however_long_that_takes(memory: Memory) -> None:
    fabric = await fabric_of(memory)
    upload = Upload(fabric.connection, fabric.topology.objects.name, fabric.objects.bucket, "slow", timeout=5)
    about = orphans.Orphan("", "nobody.memory.global.global.k", 0).about()
    info = {"name": "slow", "metadata": about, "deleted": True}
    await upload._publish(upload._meta, orjson.dumps(info), {"Nats-Msg-Id": "slow-announced"})
    announced = fabric.log.now()
    await eventually(lambda: fabric.log.now() > announced + 3_000_000_000)
    await upload._publish(upload._chunks, b"1", {"Nats-Msg-Id": "slow-1"})
    assert await swept(fabric, timedelta(seconds=2.5)) == 0
    assert await messages(fabric) == 2
    assert await swept(fabric) == 1
    assert await messages(fabric) == 0


async def test_what_others_put_into_the_store_is_left_alone(server: NatsServer, namespace: str, memory: Memory) -> None:
    fabric = await fabric_of(memory)
    client = await nats.connect(server.url)
    try:
        store = await client.jetstream().object_store(f"{namespace}-objects")
        await store.put("mine", b"theirs")
        await store.put("*", b"theirs")
        await client.jetstream().publish(f"$O.{namespace}-objects.M.bm9uZQ==", b"no description")
        await client.jetstream().publish(f"$O.{namespace}-objects.M.bnVtYmVy", b'{"name": "x", "metadata": [1]}')
        await orphan(memory)
        assert await swept(fabric) == 1
        assert (await store.get("mine")).data == (await store.get("*")).data == b"theirs"
    finally:
        await client.close()


async def test_many_objects_are_looked_at_in_slices(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "SLICE", 3)
    fabric = await fabric_of(memory)
    for number in range(7):
        await orphan(memory, f"k{number}")
    count, checkpoint, done = await orphans.sweep_objects(fabric, 0, AT_ONCE)
    assert (count, done) == (3, False)
    assert await swept(fabric) == 4
    assert checkpoint > 0


# -- races ------------------------------------------------------------------------------------------------------------


async def test_a_writer_that_was_away_while_its_object_was_collected_stores_it_anew(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric = await fabric_of(memory)
    collected: list[int] = []

    async def slept_through(*args: Any, **kwargs: Any) -> int:
        if not collected:
            collected.append(await swept(fabric))
        return await append_batch(*args, **kwargs)

    monkeypatch.setattr(writing, "append_batch", slept_through)
    revision = await memory.set("before", 1)
    assert await memory.set("report", LARGE, if_revision=0) > revision
    assert collected == [1]
    assert await memory.get("report") == LARGE
    assert [event.data async for event in memory.history("report")] == [LARGE]
    assert await swept(fabric) == 0


async def test_a_write_whose_objects_are_always_collected_first_gives_up(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric = await fabric_of(memory)

    async def too_slow(*args: Any, **kwargs: Any) -> int:
        await swept(fabric)
        return await append_batch(*args, **kwargs)

    monkeypatch.setattr(writing, "append_batch", too_slow)
    with pytest.raises(UnavailableError, match="nothing was written"):
        await memory.set("report", LARGE)
    assert not await memory.exists("report")


async def test_an_event_that_came_just_before_its_object_was_condemned_saves_it(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric = await fabric_of(memory)
    append = fabric.log.append

    async def overtaken(subject: str, *args: Any, **kwargs: Any) -> Any:
        if ".checks.objects." in subject:
            held.set()
            await going.wait()
        return await append(subject, *args, **kwargs)

    held, going = asyncio.Event(), asyncio.Event()

    async def sweeping() -> int:
        return await swept(fabric)

    async def while_it_is_condemned(*args: Any, **kwargs: Any) -> int:
        task = asyncio.create_task(sweeping())
        await asyncio.wait_for(held.wait(), 20)
        revision = await append_batch(*args, **kwargs)
        going.set()
        assert await task == 0
        return revision

    monkeypatch.setattr(fabric.log, "append", overtaken)
    monkeypatch.setattr(writing, "append_batch", while_it_is_condemned)
    await memory.set("report", LARGE)
    assert await memory.get("report") == LARGE
    assert await condemned(fabric) == 1


async def test_several_sweepers_and_writers_at_once_lose_nothing(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    async with connect(server.url, namespace=namespace) as other:
        fabrics = [await fabric_of(memory), await fabric_of(other)]
        over = asyncio.Event()

        async def sweeper(fabric: Fabric) -> int:
            count = 0
            while not over.is_set():
                count += await swept(fabric)
            return count

        async def writer(number: int) -> None:
            for turn in range(4):
                try:
                    await memory.set(f"k{number}", [LARGE, number, turn])
                except UnavailableError:  # swept away three times in a row, and said so
                    await memory.set(f"k{number}", [number, turn])

        sweepers = [asyncio.create_task(sweeper(fabric)) for fabric in fabrics]
        await asyncio.gather(*(writer(number) for number in range(6)))
        over.set()
        await asyncio.gather(*sweepers)
        for number in range(6):
            turns = [event.data[-2:] async for event in memory.history(f"k{number}")]
            assert turns == [[number, turn] for turn in range(4)]


async def test_the_outcome_of_a_large_write_may_be_unknown_and_its_object_is_then_kept(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unanswered(*args: Any, **kwargs: Any) -> int:
        await append_batch(*args, **kwargs)
        raise OutcomeUnknownError("sent, and never confirmed", event_id="same")

    monkeypatch.setattr(writing, "append_batch", unanswered)
    with pytest.raises(OutcomeUnknownError):
        await memory.set("report", LARGE, event_id="same")
    monkeypatch.undo()
    fabric = await fabric_of(memory)
    revision = await memory.set("report", LARGE, event_id="same")
    assert await swept(fabric) == 1, "the second object was not needed"
    assert await memory.get("report") == LARGE
    assert [event.revision async for event in memory.history("report")] == [revision]


# -- the worker -------------------------------------------------------------------------------------------------------


async def test_the_sweep_renews_its_timer_and_remembers_how_far_it_came(memory: Memory) -> None:
    fabric = await fabric_of(memory)
    await ensure_sweeps(fabric)
    assert f"{SWEEP}.{orphans.OBJECTS}" in await fabric.timers.names(SWEEP)
    await orphan(memory)
    assert await sweep(fabric, orphans.OBJECTS, b"0", AT_ONCE) == 1
    assert await sweep(fabric, orphans.OBJECTS, b"not a number", AT_ONCE) == 0
    assert f"{SWEEP}.{orphans.OBJECTS}" in await fabric.timers.names(SWEEP)


async def test_the_worker_of_an_agent_sweeps_the_objects_when_their_timer_fires(
    server: NatsServer, namespace: str, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric = await fabric_of(memory)
    monkeypatch.setattr(sweep, "__defaults__", (timedelta(seconds=0.5),))
    await orphan(memory)
    timer = f"{SWEEP}.{orphans.OBJECTS}"

    async def started() -> bool:
        return timer in await fabric.timers.names(SWEEP)

    async def collected() -> bool:
        return await messages(fabric) == 0

    async with Agent("worker", nats_url=server.url, namespace=namespace):
        await eventually(started, within=10)  # a worker that finds no timer sets one, an hour ahead
        await fabric.timers.schedule(timer, fabric.log.now(), b"0")
        await eventually(collected, within=10)


# -- memory -----------------------------------------------------------------------------------------------------------

MEASURED = """
import asyncio, sys
from agentfield import connect

SIZE = 64 * 1024 * 1024

def resident(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024

async def main(url, namespace, doing):
    async with connect(url, namespace=namespace) as memory:
        await memory.set("warm", "x" * 400_000)
        await memory.get("warm")
        before = resident("VmRSS")
        if doing == "set":
            await memory.set("report", "x" * SIZE)
        else:
            assert len(await memory.get("report")) == SIZE
        print((resident("VmHWM") - before) / SIZE, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the peak of a process's memory")
async def test_memory_stays_within_a_few_times_the_value(server: NatsServer, namespace: str) -> None:
    # Storing: the value, its JSON, a MiB of chunks. Reading: the JSON, the decoder's copy of it, the value.
    for doing, limit in (("set", 2.5), ("get", 3.5)):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", MEASURED, server.url, namespace, doing), stdout=subprocess.PIPE
        )
        said, _ = await process.communicate()
        assert process.returncode == 0
        assert float(said) < limit, f"{doing} of 64 MiB took {float(said):.1f} times as much memory"
