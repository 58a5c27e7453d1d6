"""The offline buffer: writes that wait for the server, in order, each once, and none dropped silently."""

from __future__ import annotations

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
