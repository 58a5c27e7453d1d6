"""A connection outlives whatever happens to it, says what it knows, and lets no exception of nats-py through."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from agentfield import AccessDeniedError, ClosedError, InvalidInputError, UnavailableError, connect
from agentfield.fabric.faults import ConnectionLostFault, NoAnswerFault, NoRespondersFault
from agentfield.fabric.log import Log
from agentfield.fabric.topology import Topology, provision
from agentfield.fabric.wire.connection import Connection, ConnectionState
from agentfield.fabric.wire.message import Message
from tests.support import NatsServer, eventually

USERS = """
authorization {
    users: [
        {user: whole, password: secret}
        {user: half, password: secret, permissions: {
            publish: {deny: ["Closed.Area.>"]}
            subscribe: {deny: ["Closed.Area.>"]}
        }}
        {user: odd, password: "p@s/s:w%rd"}
        {user: mute, password: secret, permissions: {subscribe: {deny: ["_INBOX.>"]}}}
    ]
}
"""


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Connection]:
    connection = await Connection.open(url, namespace="test", name="test", **options)
    try:
        yield connection
    finally:
        await connection.aclose()


@pytest.fixture
async def connection(server: NatsServer) -> AsyncIterator[Connection]:
    async with connected(server.url) as connection:
        yield connection


def breaking(connection: Connection) -> None:
    """Have the server end this client with an -ERR, after which nats-py gives up for good."""
    transport = connection.client._transport
    assert transport is not None
    transport.write(b"NONSENSE\r\n")


async def echo(connection: Connection, subject: str) -> None:
    async def answer(message: Message) -> None:
        await connection.publish(message.reply, message.payload, dict(message.headers) or None)

    await connection.subscribe(subject, answer)
    await connection.flush()


def history(connection: Connection) -> list[ConnectionState]:
    states: list[ConnectionState] = []
    connection.on_state(states.append)
    return states


def counted(states: list[ConnectionState], state: ConnectionState, times: int) -> bool:
    return states.count(state) == times


# -- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
async def test_it_says_what_it_is_connected_to(connection: Connection, server: NatsServer) -> None:
    assert connection.state == "connected"
    assert connection.url == server.url
    assert connection.server_version.startswith("2.")
    assert connection.max_payload == 1024 * 1024
    assert not connection.clustered


async def test_where_nobody_listens_opening_ends_at_its_deadline() -> None:
    started = asyncio.get_running_loop().time()
    with pytest.raises(UnavailableError, match=r"no NATS server answered at nats://127\.0\.0\.1:1 within 0\.5 s"):
        await Connection.open("nats://127.0.0.1:1", namespace="test", name="test", timeout=0.5)
    assert asyncio.get_running_loop().time() - started < 2


async def test_entering_waits_for_a_server_as_long_as_an_operation_may_take() -> None:
    async with asyncio.timeout(4):
        with pytest.raises(UnavailableError, match=r"within 0\.3 s"):
            await connect("nats://127.0.0.1:1", timeout=0.3).__aenter__()


async def test_a_port_where_something_else_listens_is_no_server() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        with pytest.raises(UnavailableError):
            await Connection.open(f"nats://127.0.0.1:{port}", namespace="test", name="test", timeout=0.5)


async def test_one_live_server_of_several_is_enough(server: NatsServer) -> None:
    async with connected(f"nats://127.0.0.1:1, {server.url}") as connection:
        assert connection.url == server.url


@pytest.mark.parametrize("url", ["nats://host:port", "http://[", "127.0.0.1:not-a-port"])
async def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match="not a NATS URL"):
        await Connection.open(url, namespace="test", name="test", timeout=1.0)


async def test_a_wrong_password_is_told_at_once_and_never_shown(start_server: Callable[..., NatsServer]) -> None:
    server = start_server(extra=USERS)
    async with asyncio.timeout(2):
        with pytest.raises(AccessDeniedError) as refused:
            await Connection.open(
                server.url.replace("//", "//whole:hunter2@"), namespace="test", name="test", timeout=5.0
            )
    assert "hunter2" not in str(refused.value)
    async with connected(server.url.replace("//", "//whole:secret@")) as connection:
        assert connection.url == server.url


async def test_what_a_url_may_not_hold_is_escaped_in_it(start_server: Callable[..., NatsServer]) -> None:
    server = start_server(extra=USERS)
    async with connected(server.url.replace("//", "//odd:p%40s%2Fs%3Aw%25rd@")) as connection:
        assert connection.state == "connected"


# -- requests ---------------------------------------------------------------------------------------------------------


async def test_a_request_gets_its_answer_with_its_headers(connection: Connection, namespace: str) -> None:
    await echo(connection, namespace)
    answer = await connection.request(namespace, b"hello", {"A": "b"}, timeout=2)
    assert (answer.payload, dict(answer.headers), answer.status) == (b"hello", {"A": "b"}, 0)


async def test_many_requests_at_once_each_get_their_own_answer(connection: Connection, namespace: str) -> None:
    await echo(connection, namespace)
    asked = [str(number).encode() for number in range(500)]
    answers = await asyncio.gather(*(connection.request(namespace, payload, timeout=5) for payload in asked))
    assert [answer.payload for answer in answers] == asked


async def test_nobody_to_ask_is_told_at_once(connection: Connection, namespace: str) -> None:
    async with asyncio.timeout(1):
        with pytest.raises(NoRespondersFault):
            await connection.request(namespace, timeout=30)


async def test_no_answer_is_told_at_the_deadline_and_a_late_one_is_nobodys(
    connection: Connection, namespace: str
) -> None:
    asked: list[Message] = []

    async def keep(message: Message) -> None:
        asked.append(message)

    await connection.subscribe(namespace, keep)
    with pytest.raises(NoAnswerFault):
        await connection.request(namespace, timeout=0.05)
    await connection.publish(asked[0].reply, b"late")
    await connection.flush()
    await echo(connection, f"{namespace}.echo")
    assert (await connection.request(f"{namespace}.echo", b"now", timeout=2)).payload == b"now"


async def test_a_cancelled_request_leaves_nothing_behind(connection: Connection, namespace: str) -> None:
    async def ignore(_: Message) -> None: ...

    await connection.subscribe(namespace, ignore)
    asking = asyncio.create_task(connection.request(namespace, timeout=30))
    await eventually(lambda: connection._requests.in_flight)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not connection._requests.in_flight


@pytest.mark.parametrize("headers", [None, {"A": "b"}])
async def test_a_message_over_the_limit_is_refused_and_harms_nothing(
    connection: Connection, namespace: str, headers: dict[str, str] | None
) -> None:
    states = history(connection)
    await echo(connection, namespace)
    payload = bytes(connection.max_payload + (0 if headers else 1))
    with pytest.raises(InvalidInputError, match="over the server's limit"):
        await connection.publish(namespace, payload, headers)
    assert (await connection.request(namespace, b"still here", timeout=2)).payload == b"still here"
    assert states == []


async def test_a_flush_ends_with_the_connection(fresh_server: NatsServer) -> None:
    async with connected(fresh_server.url) as connection:
        await fresh_server.pause()
        flushing = asyncio.create_task(connection.flush(30.0))
        await eventually(lambda: connection._requests.in_flight)
        await fresh_server.kill()
        async with asyncio.timeout(2):
            with pytest.raises(UnavailableError, match="lost"):
                await flushing


async def test_a_flush_that_is_given_up_does_not_deafen_the_connection(fresh_server: NatsServer) -> None:
    async with connected(fresh_server.url) as connection:
        await echo(connection, "test")
        states = history(connection)
        await fresh_server.pause()
        with pytest.raises(UnavailableError):
            await connection.flush(0.2)
        await fresh_server.resume()
        assert (await connection.request("test", b"heard", timeout=2)).payload == b"heard"
        assert states == []


# -- permissions ------------------------------------------------------------------------------------------------------


async def test_a_denied_request_is_told_at_once_with_its_subject(start_server: Callable[..., NatsServer]) -> None:
    server = start_server(extra=USERS)
    async with connected(server.url.replace("//", "//half:secret@")) as connection:
        async with asyncio.timeout(2):
            with pytest.raises(AccessDeniedError) as denied:
                await connection.request("Closed.Area.51", timeout=30)
        assert denied.value.subject == "Closed.Area.51"
        with pytest.raises(NoRespondersFault):
            await connection.request("open.area", timeout=2)


async def test_a_denied_subscription_is_told_at_once(start_server: Callable[..., NatsServer]) -> None:
    server = start_server(extra=USERS)

    async def ignore(_: Message) -> None: ...

    async with connected(server.url.replace("//", "//half:secret@")) as connection, asyncio.timeout(2):
        with pytest.raises(AccessDeniedError) as denied:
            await connection.subscribe("Closed.Area.>", ignore)
        assert denied.value.subject == "Closed.Area.>"
        await connection.subscribe("open.area", ignore)


async def test_a_user_who_may_hear_no_answers_is_told_when_connecting(start_server: Callable[..., NatsServer]) -> None:
    server = start_server(extra=USERS)
    with pytest.raises(AccessDeniedError, match="_INBOX"):
        await Connection.open(server.url.replace("//", "//mute:secret@"), namespace="test", name="test")


# -- outages ----------------------------------------------------------------------------------------------------------


async def test_a_restart_is_reported_and_survived_by_subscriptions(fresh_server: NatsServer) -> None:
    async with connected(fresh_server.url) as connection:
        await echo(connection, "test")
        states = history(connection)
        await fresh_server.stop()
        await eventually(lambda: connection.state == "reconnecting")
        with pytest.raises(UnavailableError, match="is away"):
            await connection.publish("test")
        with pytest.raises(UnavailableError, match=r"did not come back within 0\.1 s"):
            await connection.request("test", timeout=0.1)
        asking = asyncio.create_task(connection.request("test", b"waits", timeout=20))
        await fresh_server.start()
        assert (await asking).payload == b"waits"
        assert states == ["reconnecting", "connected"]


async def test_a_request_in_flight_when_the_server_goes_has_an_unknown_outcome(fresh_server: NatsServer) -> None:
    async with connected(fresh_server.url) as connection:

        async def ignore(_: Message) -> None: ...

        await connection.subscribe("test", ignore)
        asking = asyncio.create_task(connection.request("test", timeout=30))
        await eventually(lambda: connection._requests.in_flight)
        await fresh_server.kill()
        with pytest.raises(ConnectionLostFault):
            await asking


async def test_after_the_client_has_given_up_a_new_one_takes_over_whole(connection: Connection, namespace: str) -> None:
    await echo(connection, namespace)
    states = history(connection)
    first = connection.client
    breaking(connection)
    await eventually(lambda: "connected" in states, within=10)
    # As soon as it is said to be connected, requests are answered: the inbox is there, and so is every subscription.
    assert (await connection.request(namespace, b"again", timeout=2)).payload == b"again"
    assert states == ["reconnecting", "connected"]
    assert connection.client is not first
    for times in range(2, 5):
        breaking(connection)
        await eventually(partial(counted, states, "reconnecting", times))
        assert (await connection.request(namespace, b"and again", timeout=10)).payload == b"and again"


async def test_a_client_that_has_gone_deaf_is_replaced(connection: Connection, namespace: str) -> None:
    await echo(connection, namespace)
    states = history(connection)
    assert connection.client._reading_task is not None
    connection.client._reading_task.cancel()
    await eventually(lambda: states == ["reconnecting", "connected"], within=10)
    assert (await connection.request(namespace, b"again", timeout=2)).payload == b"again"


async def test_reads_go_on_while_the_client_is_replaced(connection: Connection, namespace: str) -> None:
    topology = Topology(namespace)
    await provision(connection, topology)
    log = Log(connection, topology)
    done = False
    longest = 0.0

    async def read() -> int:
        count = 0
        while not done:
            assert await log.last([f"{namespace}.memory.global.global.key"]) == [None]
            count += 1
        return count

    async def pulse() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        while not done:
            before = loop.time()
            await asyncio.sleep(0.01)
            longest = max(longest, loop.time() - before)

    states = history(connection)
    readers = [asyncio.create_task(read()) for _ in range(8)]
    beat = asyncio.create_task(pulse())
    for times in range(1, 4):
        breaking(connection)
        await eventually(partial(counted, states, "connected", times), within=10)
        assert (await log.last([f"{namespace}.memory.global.global.key"])) == [None]
    done = True
    assert all(await asyncio.gather(*readers))
    await beat
    assert longest < 1.0, f"the loop stood still for {longest:.1f} s"


# -- closing ----------------------------------------------------------------------------------------------------------


async def test_closing_fails_what_waits_and_what_comes(server: NatsServer, namespace: str) -> None:
    connection = await Connection.open(server.url, namespace="test", name="test")

    async def ignore(_: Message) -> None: ...

    await connection.subscribe(namespace, ignore)
    asking = asyncio.create_task(connection.request(namespace, timeout=30))
    await eventually(lambda: connection._requests.in_flight)
    await connection.aclose()
    await connection.aclose()
    with pytest.raises((ClosedError, ConnectionLostFault)):
        await asking
    for use in (
        connection.request("test", timeout=1),
        connection.publish("test"),
        connection.subscribe("test", ignore),
        connection.flush(),
        connection.wait_connected(1),
    ):
        with pytest.raises(ClosedError):
            await use
    assert connection.state == "closed"


async def test_closing_while_the_server_is_away_does_not_wait_for_it(fresh_server: NatsServer) -> None:
    async with connected(fresh_server.url) as connection:
        await fresh_server.kill()
        await eventually(lambda: connection.state == "reconnecting")
        async with asyncio.timeout(1):
            await connection.aclose()


async def test_what_was_published_before_closing_arrives(server: NatsServer, namespace: str) -> None:
    async with connected(server.url) as there:
        heard: list[bytes] = []

        async def hear(message: Message) -> None:
            heard.append(message.payload)

        await there.subscribe(namespace, hear)
        await there.flush()
        async with connected(server.url) as here:
            for number in range(1000):
                await here.publish(namespace, str(number).encode())
        await eventually(lambda: len(heard) == 1000)
    assert heard == [str(number).encode() for number in range(1000)]
