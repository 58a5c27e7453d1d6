"""A program keeps to its server: another one that takes its place is told nothing, and nothing it says is believed."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from agentfield import Agent, CaughtUp, Event, Memory, UnavailableError, connect
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from agentfield.local import Server, ensure_server, lifecycle, stop_server
from tests.support import NatsServer, eventually
from tests.support.homes import end_servers_on
from tests.support.ports import free_ports


@pytest.fixture
def stranger(fresh_server: NatsServer, tmp_path: Path) -> Iterator[NatsServer]:
    """Return a server, not started yet, that has another log and is to take the place of `fresh_server`."""
    stranger = NatsServer(
        tmp_path / "stranger",
        name=fresh_server.name,
        client_port=fresh_server.client_port,
        monitor_port=fresh_server.monitor_port,
    )
    yield stranger
    stranger.dispose()


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """Return two homes, of which the first is the environment's."""
    ours, other = tmp_path / "ours", tmp_path / "other"
    monkeypatch.setenv("AGENTFIELD_HOME", str(ours))
    yield ours, other
    for home in (ours, other):
        end_servers_on(home)


async def started(home: Path, *, port: int | None = None) -> Server:
    """The server of a home, on that port or on one of the test's own."""
    client_port, monitor_port = free_ports(2)
    return await asyncio.to_thread(lifecycle.ensure, home, choices=[(port or client_port, monitor_port)])


async def named_stranger(memory: Memory) -> bool:
    """Whether the outage is said to be another server's doing."""
    try:
        await memory.get("key")
    except UnavailableError as error:
        return "another" in str(error)
    raise AssertionError("a stranger was believed")


@asynccontextmanager
async def looking(url: str, namespace: str) -> AsyncIterator[Memory]:
    async with connect(url, namespace=namespace) as memory:
        yield memory


async def test_a_program_without_a_url_stays_with_its_home_and_follows_it_to_another_port(
    homes: tuple[Path, Path],
) -> None:
    ours, other = homes
    first = await started(ours)
    port = int(first.url.rpartition(":")[2])
    async with connect(timeout=1.0) as memory:
        await memory.set("key", "ours")
        await stop_server(ours)
        taken = await started(other, port=port)
        assert taken.url == first.url
        async with looking(taken.url, "agentfield") as theirs:
            await theirs.set("key", "theirs")
            await eventually(lambda: named_stranger(memory), within=10)
            with pytest.raises(UnavailableError, match=f"{first.url}.*another server answers there"):
                await memory.set("key", "lost")
            assert (await memory._fabric()).connection.state == "reconnecting"
            again = await started(ours)
            assert again.url != first.url
            fabric = await memory._fabric()
            await fabric.connection.wait_connected(10)
            assert fabric.connection.url == again.url
            assert await memory.get("key") == "ours"
            await memory.set("key", "ours again")
            assert [event.data async for event in theirs.history("*")] == ["theirs"]
        assert [event.data async for event in memory.history("*")] == ["ours", "ours again"]


async def test_a_home_that_starts_again_at_once_is_found_again(homes: tuple[Path, Path]) -> None:
    await ensure_server()
    async with connect() as memory:
        await memory.set("key", 1)
        await stop_server()
        await ensure_server()
        assert await memory.get("key") == 1


async def test_a_server_with_another_log_is_not_used(
    fresh_server: NatsServer, stranger: NatsServer, namespace: str
) -> None:
    async with connect(fresh_server.url, namespace=namespace, timeout=1.0) as memory:
        await memory.set("key", "ours")
        await fresh_server.stop()
        await stranger.start()
        await eventually(lambda: named_stranger(memory), within=10)  # it has no log at all
        async with looking(stranger.url, namespace) as theirs:
            await theirs.set("key", "theirs")
            await eventually(lambda: named_stranger(memory), within=10)  # now it has one
            assert [event.data async for event in theirs.history("*")] == ["theirs"]
        await stranger.stop()
        await fresh_server.start()
        await (await memory._fabric()).connection.wait_connected(10)
        assert await memory.get("key") == "ours"


async def test_what_waited_to_be_written_when_the_server_went_is_not_for_a_stranger(
    fresh_server: NatsServer, stranger: NatsServer, namespace: str
) -> None:
    async with connect(fresh_server.url, namespace=namespace, timeout=1.0) as memory:
        await memory.set("key", "ours")
        client = (await memory._fabric()).connection.client
        await fresh_server.stop()
        await eventually(lambda: not client.is_connected)
        subject = f"{namespace}.overheard"
        await client.publish(subject, b"secret")
        await stranger.start()
        heard: list[bytes] = []
        fabric = await Fabric.open(stranger.url, namespace=namespace, name="test")
        try:
            await fabric.connection.listen(subject, lambda message: heard.append(message.payload))
            await eventually(lambda: named_stranger(memory), within=10)
            await fabric.connection.flush()
        finally:
            await fabric.aclose()
        assert not heard


async def test_all_that_an_agent_does_goes_on_with_its_own_server(
    fresh_server: NatsServer, stranger: NatsServer, namespace: str
) -> None:
    app = Agent("app", nats_url=fresh_server.url, namespace=namespace)
    handled: list[object] = []
    watched: list[object] = []

    @app.memory.on_change("key")
    async def react(event: Event) -> None:
        handled.append(event.data)
        await app.memory.set("reaction", event.data, scope="global")

    @app.reasoner()
    async def double(number: int) -> int:
        return number * 2

    async def watch(memory: Memory) -> None:
        async with aclosing(memory.watch("key", start="all")) as events:
            async for event in events:
                if not isinstance(event, CaughtUp):
                    watched.append(event.data)

    async with app, connect(fresh_server.url, namespace=namespace) as memory, asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch(memory))
        await memory.set("key", 1)
        await eventually(lambda: handled == watched == [1])
        assert await memory.get("key", consistency="cached") == 1
        await fresh_server.stop()
        async with memory.offline() as buffer:
            buffer.set("key", 2)
            await stranger.start()
            async with looking(stranger.url, namespace) as theirs:
                await theirs.set("key", "theirs")
                fabric = await memory._fabric()
                await eventually(lambda: "another log" in str(fabric.connection._last_error), within=10)
                assert buffer.depth == 1
                assert [event.data async for event in theirs.history("*")] == ["theirs"]
                streams = await api((await theirs._fabric()).connection, f"CONSUMER.NAMES.{namespace.upper()}_MEMORY")
                assert not streams["consumers"]
            await stranger.stop()
            await fresh_server.start()
        await eventually(lambda: handled == watched == [1, 2], within=15)
        assert await app.call("app.double", number=2) == 4
        assert await memory.get("key", consistency="cached") == 2
        watching.cancel()
