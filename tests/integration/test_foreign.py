"""What something other than agentfield has put into the log: nobody stumbles over it for ever."""

import nats
import pytest

from agentfield import Agent, DecodeError, Event, connect
from agentfield.testing import settled
from tests.support import NatsServer

HOSTILE = [b"global.x", b"global.A=zz", b"global.\xff\xfe", b"nobody"]
"""Of a key; of no key; no text; in no scope."""


async def publish(server: NatsServer, namespace: str) -> None:
    """As any NATS client can, over a bare socket where the client refuses."""
    client = await nats.connect(server.url)
    try:
        for tail in HOSTILE:
            subject = f"{namespace}.memory.global.".encode() + tail
            await client._send_command(b"PUB " + subject + b" 2\r\nhi\r\n")
        await client.flush()
    finally:
        await client.close()


async def test_history_watching_and_handlers_pass_over_it(server: NatsServer, namespace: str) -> None:
    async with connect(server.url, namespace=namespace) as memory:
        await memory.set("ours", 1)
        await publish(server, namespace)
        await memory.set("ours", 2)
        assert [event.data async for event in memory.history()] == [1, 2]
        assert [event.data async for event in memory.history(reverse=True)] == [2, 1]
        seen = []
        async for item in memory.watch(start="all"):
            if not isinstance(item, Event):
                break
            seen.append(item.data)
        assert seen == [1, 2]
    agent = Agent("tester", nats_url=server.url, namespace=namespace)
    heard = []

    @agent.memory.on_change("*", start="all")
    async def react(event: Event) -> None:
        heard.append((event.key, event.data, event.previous_data))

    async with agent:
        await settled(agent)
        await agent.memory.set("x", "a real value")
        await settled(agent)
    assert heard == [("ours", 1, None), ("ours", 2, 1), ("x", "a real value", None)]


async def test_the_key_it_was_put_on_is_an_error_that_says_what_to_do_until_it_is_set_or_deleted(
    server: NatsServer, namespace: str
) -> None:
    async with connect(server.url, namespace=namespace) as memory:
        await publish(server, namespace)
        with pytest.raises(DecodeError, match="set or delete its key"):
            await memory.get("x")
        with pytest.raises(DecodeError, match="set or delete its key"):
            [entry async for entry in memory.items()]
        assert await memory.delete("x")
        assert await memory.get("x") is None
        await memory.set("ours", 1)
        assert [entry.key async for entry in memory.items()] == ["ours"]
