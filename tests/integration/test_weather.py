"""Memory in bad weather: what a user is told is true, what was acknowledged stays, and all recovers by itself."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentfield import (
    AccessDeniedError,
    Agent,
    AgentFieldError,
    ClosedError,
    ConflictError,
    Event,
    IncompatibleServerError,
    InvalidInputError,
    Memory,
    OutcomeUnknownError,
    UnavailableError,
    connect,
)
from agentfield.fabric.fabric import Fabric
from agentfield.memory import CaughtUp
from tests.support import NatsServer, eventually
from tests.support.load import Load
from tests.support.ports import free_ports

Operation = Callable[[Memory], Awaitable[Any]]

READS: dict[str, Operation] = {
    "get": lambda memory: memory.get("key"),
    "entry": lambda memory: memory.entry("key"),
    "exists": lambda memory: memory.exists("key"),
    "get_many": lambda memory: memory.get_many(["key", "other"]),
    "items": lambda memory: taken(memory.items()),
    "keys": lambda memory: taken(memory.keys("k*")),
    "history": lambda memory: taken(memory.history("key")),
    "history of many": lambda memory: taken(memory.history("*", reverse=True, limit=1)),
    "watch": lambda memory: anext(aiter(memory.watch(start="all"))),
}
WRITES: dict[str, Operation] = {
    "set": lambda memory: memory.set("key", 2),
    "set with ttl": lambda memory: memory.set("key", 2, ttl=60),
    "set if": lambda memory: memory.set("key", 2, if_revision=1),
    "set_many": lambda memory: memory.set_many({"key": 2, "other": 2}),
    "create": lambda memory: memory.create("new", 2),
    "update": lambda memory: memory.update("key", lambda value: value + 1),
    "increment": lambda memory: memory.increment("key"),
    "delete": lambda memory: memory.delete("key"),
    "clear": lambda memory: memory.clear(scope="global"),
    "transaction": lambda memory: in_transaction(memory),
}


async def taken(items: Any) -> list[Any]:
    return [item async for item in items]


async def in_transaction(memory: Memory) -> None:
    async with memory.transaction() as tx:
        tx.set("key", 2)
        tx.set("other", 2)


@asynccontextmanager
async def clock() -> Any:
    """How long the block took, in seconds, once it is over."""
    spent: list[float] = []
    started = asyncio.get_running_loop().time()
    yield spent
    spent.append(asyncio.get_running_loop().time() - started)


async def fabric_of(memory: Memory) -> Fabric:
    return await memory._fabric()


def is_last(items: list[int], item: int) -> bool:
    return items[-1] == item


async def connected(memory: Memory) -> None:
    fabric = await fabric_of(memory)
    await fabric.connection.wait_connected(20)


# -- away -------------------------------------------------------------------------------------------------------------


async def test_with_the_server_away_everything_waits_its_time_and_then_says_so(
    fresh_server: NatsServer, namespace: str
) -> None:
    async with connect(fresh_server.url, namespace=namespace, timeout=1.5) as memory:
        await memory.set("key", 1)
        await fresh_server.kill()
        fabric = await memory._fabric()
        await eventually(lambda: fabric.connection.state == "reconnecting")  # before, a write may be on its way
        names = [*READS, *WRITES]
        async with clock() as spent:
            outcomes = await asyncio.gather(
                *(operation(memory) for operation in (READS | WRITES).values()), return_exceptions=True
            )
        wrong = {
            name: outcome
            for name, outcome in zip(names, outcomes, strict=True)
            if type(outcome) is not UnavailableError
        }
        assert wrong == {}, "an outage was reported as something else"
        assert 1.0 < spent[0] < 4.0
        await fresh_server.start()
        await connected(memory)
        assert await memory.get("key") == 1
        assert [event.data async for event in memory.history()] == [1], "nothing of it was stored"


async def test_with_the_server_silent_reads_say_unavailable_and_writes_that_nobody_knows(
    fresh_server: NatsServer, namespace: str
) -> None:
    async with connect(fresh_server.url, namespace=namespace, timeout=1.5) as memory:
        await memory.set("key", 1)
        await fresh_server.pause()
        async with clock() as spent:
            outcomes = await asyncio.gather(*(read(memory) for read in READS.values()), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [UnavailableError] * len(READS)
        assert spent[0] < 4.0
        with pytest.raises(OutcomeUnknownError) as unknown:
            await memory.set("key", 2)
        assert unknown.value.event_id
        assert unknown.value.event_id in str(unknown.value)
        await fresh_server.resume()
        await connected(memory)
        revision = await memory.set("key", 2, event_id=unknown.value.event_id)
        assert [(event.data, event.revision) async for event in memory.history("key")] == [(1, 1), (2, revision)]


async def test_a_checked_write_that_nobody_knows_of_can_be_repeated_too(
    fresh_server: NatsServer, namespace: str
) -> None:
    async with connect(fresh_server.url, namespace=namespace, timeout=1.0) as memory:
        first = await memory.set("key", 1)
        await fresh_server.pause()
        with pytest.raises(OutcomeUnknownError) as unknown:
            await memory.set("key", 2, if_revision=first)
        await fresh_server.resume()
        await connected(memory)
        await memory.set("key", 2, if_revision=first, event_id=unknown.value.event_id)
        assert [event.data async for event in memory.history("key")] == [1, 2]
        with pytest.raises(ConflictError):
            await memory.set("key", 3, if_revision=first)


@pytest.mark.parametrize("event_id", ["", "a b", "a\nb", "é", "x" * 300, 7])
async def test_an_id_that_could_not_be_told_again_is_refused(memory: Memory, event_id: Any) -> None:
    with pytest.raises(InvalidInputError, match="event_id"):
        await memory.set("key", 1, event_id=event_id)
    assert not await memory.exists("key")


async def test_nobody_there_at_all_is_told_when_connecting() -> None:
    (port,) = free_ports(1)
    async with clock() as spent, asyncio.timeout(10):
        with pytest.raises(UnavailableError, match="no NATS server answered"):
            async with connect(f"nats://127.0.0.1:{port}", timeout=2):
                pass
    assert spent[0] < 5


@pytest.mark.skipif("AGENTFIELD_TEST_OLD_NATS_SERVER" not in os.environ, reason="names no older nats-server")
async def test_a_server_that_is_too_old_is_refused_by_naming_both_versions(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    binary = os.environ["AGENTFIELD_TEST_OLD_NATS_SERVER"]
    arguments = ("-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(tmp_path))
    server = await asyncio.create_subprocess_exec(binary, *arguments, stderr=asyncio.subprocess.DEVNULL)
    try:

        async def refused() -> IncompatibleServerError | None:
            try:
                async with connect(f"nats://127.0.0.1:{port}", timeout=1.0):
                    return None
            except IncompatibleServerError as error:
                return error
            except UnavailableError as error:
                raise AssertionError from error  # it is still starting

        error = await eventually(refused, within=10)
        assert error.needed in str(error)
        assert error.found in str(error)
        assert error.server
    finally:
        server.kill()
        await server.wait()


# -- under load -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gracefully", [True, False])
async def test_restarts_under_load_lose_and_repeat_nothing(
    fresh_server: NatsServer, namespace: str, gracefully: bool
) -> None:
    load = Load()
    async with (
        connect(fresh_server.url, namespace=namespace) as one,
        connect(fresh_server.url, namespace=namespace) as other,
    ):
        async with asyncio.TaskGroup() as writers:
            for number in range(10):
                writers.create_task(load.write(one if number % 2 else other, f"key_{number}"))
            for _ in range(2):
                await eventually(partial(load.passed, load.count + 200), within=20)
                await fresh_server.restart(gracefully=gracefully)
            await eventually(partial(load.passed, load.count + 200), within=20)
            load.stop.set()
        assert len(load.acknowledged) == 10
        await load.judge(one)
    assert load.refused == [], "a restart is shorter than the patience of a write"


async def test_a_server_that_stands_still_under_load_loses_and_repeats_nothing(
    fresh_server: NatsServer, namespace: str
) -> None:
    load = Load()
    async with connect(fresh_server.url, namespace=namespace, timeout=1.0) as memory:
        async with asyncio.TaskGroup() as writers:
            for number in range(10):
                writers.create_task(load.write(memory, f"key_{number}"))
            await eventually(lambda: load.count > 200, within=20)
            await fresh_server.pause()
            await eventually(lambda: len(load.unknown) >= 10, within=20)
            await fresh_server.resume()
            await eventually(partial(load.passed, load.count + 200), within=20)
            load.stop.set()
        await load.judge(memory)


# -- recovering -------------------------------------------------------------------------------------------------------


async def test_handlers_watches_and_calls_go_on_by_themselves_after_an_outage(
    fresh_server: NatsServer, namespace: str
) -> None:
    agent = Agent("worker", nats_url=fresh_server.url, namespace=namespace)
    handled: list[int] = []
    watched: list[int] = []

    @agent.memory.on_change("count")
    async def react(event: Event) -> None:
        handled.append(event.data)

    @agent.reasoner()
    async def double(number: int) -> int:
        return 2 * number

    async def watch() -> None:
        async for item in agent.memory.watch("count"):
            if not isinstance(item, CaughtUp):
                watched.append(item.data)

    async with agent:
        fabric = await fabric_of(agent.memory)
        watching = asyncio.create_task(watch())
        await agent.memory.set("count", 0)
        await eventually(lambda: handled == [0])
        for number in (1, 2):
            await fresh_server.kill()
            await eventually(lambda: fabric.connection.state == "reconnecting")
            writing = asyncio.create_task(agent.memory.set("count", number))
            await fresh_server.start()
            await writing
            await eventually(partial(is_last, handled, number), within=15)
            assert await agent.call("worker.double", number=number) == 2 * number
        await eventually(lambda: watched[-1:] == [2], within=15)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert handled == [0, 1, 2]
    assert watched in ([0, 1, 2], [1, 2])  # the watch may have begun after the first


async def test_an_operation_that_is_cancelled_leaves_nothing_behind(fresh_server: NatsServer, namespace: str) -> None:
    async with connect(fresh_server.url, namespace=namespace) as memory:
        await memory.set("key", 1)
        fabric = await fabric_of(memory)
        before = asyncio.all_tasks()
        await fresh_server.pause()
        tasks = [asyncio.ensure_future(operation(memory)) for operation in (READS | WRITES).values()]
        await eventually(lambda: fabric.connection._requests.in_flight >= len(tasks) / 2)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        await fresh_server.resume()
        await memory.set("after", 1)
        await eventually(lambda: not fabric.connection._requests.in_flight)
        await eventually(lambda: asyncio.all_tasks() <= before)


async def test_after_the_end_everything_says_closed(server: NatsServer, namespace: str) -> None:
    async with connect(server.url, namespace=namespace) as memory:
        await memory.set("key", 1)
    outcomes = await asyncio.gather(
        *(operation(memory) for operation in (READS | WRITES).values()), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [ClosedError] * len(outcomes)


# -- permissions ------------------------------------------------------------------------------------------------------


USERS = """
authorization { users: [
    {user: operator, password: secret}
    {user: reader, password: secret, permissions: {publish: {deny: ["*.memory.>"]}}}
    {user: outsider, password: secret, permissions: {publish: {deny: ["$JS.API.>"]}}}
]}
"""


async def test_what_the_server_does_not_permit_is_told_quickly(
    start_server: Callable[..., NatsServer], namespace: str
) -> None:
    server = start_server(extra=USERS)

    def url(credentials: str) -> str:
        return server.url.replace("//", f"//{credentials}@")

    async with connect(url("operator:secret"), namespace=namespace) as memory:
        await memory.set("key", 1)
    async with asyncio.timeout(5):
        async with connect(url("reader:secret"), namespace=namespace) as memory:
            assert await memory.get("key") == 1
            for write in ("set", "set_many", "increment", "delete", "transaction"):
                with pytest.raises(AccessDeniedError):
                    await WRITES[write](memory)
        for credentials in ("outsider:secret", "operator:wrong", "nobody:secret"):
            with pytest.raises(AccessDeniedError):
                async with connect(url(credentials), namespace=namespace):
                    pass
        with pytest.raises(AccessDeniedError):
            async with connect(server.url, namespace=namespace):
                pass
    async with connect(url("operator:secret"), namespace=namespace) as memory:
        assert [event.data async for event in memory.history()] == [1]


# -- no room ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "small"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(directory)]
    if (mounted := subprocess.run(mount, capture_output=True, text=True)).returncode != 0:
        pytest.skip(f"a small file system needs the right to mount one: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


async def test_on_a_full_disk_nothing_is_acknowledged_that_is_not_there_and_room_mends_it(
    small_disk: Path, namespace: str
) -> None:
    server = NatsServer.started(small_disk)
    filler = small_disk / "filler"
    try:
        async with connect(server.url, namespace=namespace, timeout=1.0) as memory:
            acknowledged = [await memory.set("key", 0)]
            free = shutil.disk_usage(small_disk).free - 256 * 1024
            filler.write_bytes(bytes(free))
            failure: AgentFieldError | None = None
            for number in range(1, 200):
                try:
                    acknowledged.append(await memory.set("key", f"{number}" + "x" * 20_000))
                except AgentFieldError as error:
                    failure = error
                    break
            assert isinstance(failure, (UnavailableError, OutcomeUnknownError))
            assert "nats" not in type(failure).__module__
            filler.unlink()
            await server.restart()
            await connected(memory)
            stored = [event.revision async for event in memory.history("key")]
            assert set(acknowledged) <= set(stored)
            assert await memory.set("key", "after")
            assert await memory.get("key") == "after"
    finally:
        server.dispose()


async def test_a_storage_quota_that_is_used_up_stores_nothing_and_says_so(
    start_server: Callable[..., NatsServer], namespace: str
) -> None:
    server = start_server(
        extra="accounts { small { jetstream { max_file: 4194304 }, users: [{user: small, password: secret}] } }\n"
    )
    async with connect(server.url.replace("//", "//small:secret@"), namespace=namespace, timeout=2.0) as memory:
        stored = 0

        async def fill() -> None:
            nonlocal stored
            for _ in range(100):
                await memory.set(f"key_{stored}", "x" * 100_000)
                stored += 1

        with pytest.raises(UnavailableError) as full:
            await fill()
        assert "exceeded" in str(full.value)
        assert stored > 3
        assert await memory.get(f"key_{stored - 1}") is not None
        assert not await memory.exists(f"key_{stored}")
