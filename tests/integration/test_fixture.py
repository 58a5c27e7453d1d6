"""The server that other tests stand on is real, durable, and in the test's hands."""

import asyncio
import os
from collections.abc import Callable

import nats
import pytest
from nats.js.api import StreamConfig

from tests.support import NatsServer, eventually, monitor


async def store(server: NatsServer, stream: str) -> int:
    client = await nats.connect(server.url, allow_reconnect=False)
    try:
        context = client.jetstream()
        await context.add_stream(StreamConfig(name=stream, subjects=[f"{stream}.>"]))
        return (await context.publish(f"{stream}.event", b"x")).seq
    finally:
        await client.close()


@pytest.mark.smoke
async def test_the_shared_server_stores_what_is_published(server: NatsServer, namespace: str) -> None:
    assert await store(server, namespace) == 1


async def test_a_restart_keeps_url_and_data(fresh_server: NatsServer, namespace: str) -> None:
    url, pid = fresh_server.url, fresh_server.pid
    assert await store(fresh_server, namespace) == 1
    await fresh_server.restart()
    assert (fresh_server.url, fresh_server.pid != pid) == (url, True)
    assert await store(fresh_server, namespace) == 2


async def test_a_crash_keeps_what_was_acknowledged(fresh_server: NatsServer, namespace: str) -> None:
    assert await store(fresh_server, namespace) == 1
    pid = fresh_server.pid
    await fresh_server.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await fresh_server.start()
    assert await store(fresh_server, namespace) == 2


async def test_a_paused_server_goes_on_where_it_stopped(fresh_server: NatsServer, namespace: str) -> None:
    assert await store(fresh_server, namespace) == 1
    await fresh_server.pause()
    assert await asyncio.to_thread(monitor.ask, fresh_server.monitor_port, "/healthz") is None
    await fresh_server.resume()
    assert await store(fresh_server, namespace) == 2


async def test_a_server_can_be_configured_further(start_server: Callable[..., NatsServer]) -> None:
    server = start_server(name="narrow", extra="max_payload: 1024\n")
    client = await nats.connect(server.url, allow_reconnect=False)
    try:
        assert client.max_payload == 1024
        assert server.name == "narrow"
    finally:
        await client.close()


def test_a_server_that_cannot_start_fails_the_test_with_its_own_words(start_server: Callable[..., NatsServer]) -> None:
    with pytest.raises(RuntimeError, match="no_such_option"):
        start_server(extra="no_such_option: yes\n")


async def test_waiting_ends_with_the_answer_or_at_the_deadline() -> None:
    answers = iter([None, 0, "here"])
    assert await eventually(lambda: next(answers)) == "here"
    with pytest.raises(AssertionError, match=r"not within 0.05 s: the moon .* 0\)"):
        await eventually(lambda: 0, within=0.05, what="the moon")
