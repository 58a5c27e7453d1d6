"""The offline buffer: writes that wait for the server, in order, each once, and none dropped silently."""

from __future__ import annotations

import asyncio

import pytest

import agentfield
from agentfield.errors import InvalidInputError, UnavailableError
from agentfield.memory.offline import OfflineBuffer
from tests.support import NatsServer, eventually


async def test_writes_given_while_the_server_is_away_are_stored_in_order_when_it_is_back(
    fresh_server: NatsServer, namespace: str
) -> None:
    async with agentfield.connect(fresh_server.url, namespace=namespace, timeout=1.0) as memory:
        async with memory.offline(limit=50, timeout=30) as buffer:
            await memory.set("before", 1)
            await fresh_server.kill()
            ids = [buffer.set("k", number) for number in range(20)]
            buffer.delete("before")
            assert buffer.depth == 21
            await fresh_server.start()
        assert buffer.depth == 0
        assert buffer.failed == []
        stored = [event async for event in memory.history("k")]
        assert [event.data for event in stored] == list(range(20))
        assert [event.id for event in stored] == ids
        assert not await memory.exists("before")


async def test_an_exception_in_the_block_drops_nothing_that_was_taken(fresh_server: NatsServer, namespace: str) -> None:
    async with agentfield.connect(fresh_server.url, namespace=namespace, timeout=0.5) as memory:

        async def fails(buffer: OfflineBuffer) -> None:
            async with buffer:
                for number in range(20):
                    buffer.set(f"k_{number}", number)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fails(memory.offline())
        assert await memory.get_many([f"k_{number}" for number in range(20)]) == {f"k_{n}": n for n in range(20)}
        await fresh_server.kill()
        with pytest.raises(ZeroDivisionError) as raised:
            await fails(memory.offline(timeout=0.3))
        assert "20 writes still waiting for the server after 0.3 s: 'k_0'" in raised.value.__notes__[0]


async def test_a_cancelled_block_drops_nothing_that_was_taken(fresh_server: NatsServer, namespace: str) -> None:
    async with agentfield.connect(fresh_server.url, namespace=namespace, timeout=0.5) as memory:

        async def waits(buffer: OfflineBuffer) -> None:
            async with buffer:
                for number in range(50):
                    buffer.set("k", number)
                await asyncio.Event().wait()

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await waits(memory.offline())
        assert [event.data async for event in memory.history("k")] == list(range(50))
        await fresh_server.kill()
        with pytest.raises(TimeoutError) as raised:
            async with asyncio.timeout(0.01):
                await waits(memory.offline(timeout=0.3))
        assert "50 writes still waiting for the server after 0.3 s: 'k'" in raised.value.__cause__.__notes__[0]  # type: ignore[union-attr]


async def test_a_second_cancellation_ends_the_wait_and_the_log_names_what_is_left(
    fresh_server: NatsServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with agentfield.connect(fresh_server.url, namespace=namespace, timeout=20) as memory:
        await memory.set("before", 1)
        await fresh_server.pause()
        buffer = memory.offline()

        async def waits() -> None:
            async with buffer:
                ids.append(buffer.set("first", 1))
                buffer.set("second", 2)
                await asyncio.Event().wait()

        ids: list[str] = []
        task = asyncio.create_task(waits())
        await eventually(lambda: buffer._sent is not None)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=0.2)
        assert not done, "it waits for the server"
        task.cancel()
        async with asyncio.timeout(2):
            with pytest.raises(asyncio.CancelledError):
                await task
        await fresh_server.resume()
    said = [record.getMessage() for record in caplog.records if record.name == "agentfield.offline"]
    assert said == [
        "offline buffer closed before the server had confirmed set of 'first': "
        f"it may be stored, or not, as event {ids[0]}",
        "offline buffer closed with 1 write not stored: 'second'",
    ]


async def test_a_full_buffer_refuses_and_says_so(fresh_server: NatsServer, namespace: str) -> None:
    async with agentfield.connect(fresh_server.url, namespace=namespace, timeout=0.5) as memory:
        buffer = memory.offline(limit=3, timeout=0.3)
        await buffer.__aenter__()
        await fresh_server.kill()
        for number in range(3):
            buffer.set(f"k_{number}", number)
        with pytest.raises(UnavailableError, match=r"full.*'k_3' was not taken"):
            buffer.set("k_3", 3)
        assert buffer.depth == 3
        with pytest.raises(UnavailableError, match="3 writes still waiting"):
            await buffer.__aexit__(None, None, None)


async def test_a_write_that_can_never_succeed_is_reported_and_does_not_block_the_others(
    fresh_server: NatsServer, namespace: str
) -> None:
    async with (
        agentfield.connect(fresh_server.url, namespace=namespace) as memory,
        memory.offline() as buffer,
    ):
        with pytest.raises(InvalidInputError):
            buffer.set("bad*key", 1)
        buffer.set("good", 1)
        await eventually(lambda: buffer.depth == 0)
        assert await memory.get("good") == 1


async def test_outside_its_block_the_buffer_takes_nothing(server: NatsServer, namespace: str) -> None:
    async with agentfield.connect(server.url, namespace=namespace) as memory:
        buffer = memory.offline()
        with pytest.raises(InvalidInputError, match="inside its"):
            buffer.set("k", 1)
