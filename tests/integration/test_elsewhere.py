"""An agent can be elsewhere for a while: on another server, in another namespace, with another model."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from agentfield import Agent, Event, InvalidInputError, Memory, connect
from agentfield.testing import settled
from tests.support import NatsServer

NOWHERE = "nats://127.0.0.1:1"


@pytest.fixture
async def other(server: NatsServer) -> AsyncIterator[Memory]:
    async with connect(server.url, namespace=f"o{secrets.token_hex(8)}") as memory:
        yield memory


@pytest.fixture
def app() -> Agent:
    """An agent as a file makes it when it is imported: for a server that no test may touch."""
    return Agent("app", nats_url=NOWHERE, namespace="production")


async def test_everything_that_is_done_with_it_happens_there(app: Agent, server: NatsServer, namespace: str) -> None:
    handled: list[str] = []
    customer = app.memory.session("ada")

    @app.reasoner()
    async def double(number: int) -> int:
        await customer.set("last", number)
        return 2 * number

    @app.memory.on_change("last")
    async def react(event: Event) -> None:
        handled.append(event.scope_id)

    async with connect(server.url, namespace=namespace) as memory, app.elsewhere(server.url, namespace=namespace):
        assert app.namespace == namespace
        async with app:
            assert set(app.handlers) == {"react"}
            assert await app.call("app.double", number=21) == 42
            await settled(app)
        assert handled == ["ada"]
        assert await memory.session("ada").get("last") == 21
    assert app.namespace == "production"
    assert not app.handlers


async def test_it_can_go_any_number_of_times_and_takes_nothing_with_it(
    app: Agent, server: NatsServer, namespace: str
) -> None:
    handled: list[int] = []

    @app.memory.on_change("k")
    async def react(event: Event) -> None:
        handled.append(event.data)

    for round in range(3):
        async with app.elsewhere(server.url, namespace=f"{namespace}-{round}"), app:
            assert await app.memory.get("k", consistency="session") is None
            async with app.workflow("w"):
                for number in range(3 - round):
                    await app.memory.set("k", number)
                assert await app.memory.get("k", consistency="cached") == 2 - round
            await settled(app)
    assert handled == [0, 1, 2, 0, 1, 0]


async def test_only_what_is_named_changes_and_it_comes_back_also_after_a_failure(
    server: NatsServer, namespace: str
) -> None:
    async def own_model(messages: object, *, schema: object) -> str:
        return "own"

    async def other_model(messages: object, *, schema: object) -> str:
        return "other"

    app = Agent("app", nats_url=server.url, namespace=namespace, ai=own_model)
    await app.memory.set("k", "at home")
    with suppress(ZeroDivisionError):
        async with app.elsewhere(ai=other_model):
            assert await app.ai("who are you?") == "other"
            assert await app.memory.get("k") == "at home"
            async with app.elsewhere(namespace=f"{namespace}-2"):
                assert await app.ai("who are you?") == "other"
                assert await app.memory.get("k") is None
            raise ZeroDivisionError
    assert await app.ai("who are you?") == "own"
    assert await app.memory.get("k") == "at home"
    await app.aclose()


async def test_what_is_open_there_is_closed_at_the_end(app: Agent, server: NatsServer, namespace: str) -> None:
    async with app.elsewhere(server.url, namespace=namespace):
        await app.__aenter__()
        app.note("still to be stored")
        connection = (await app._presence.handle.fabric()).connection
        notes = app._presence.notes
    assert connection.state == "closed"
    assert notes.delivered == 1
    assert app._presence.url == NOWHERE


async def test_an_agent_that_serves_stays_where_it_is(server: NatsServer, namespace: str, other: Memory) -> None:
    async with Agent("app", nats_url=server.url, namespace=namespace) as app:
        with pytest.raises(InvalidInputError, match="serves"):
            await app.elsewhere(namespace="another").__aenter__()
        with pytest.raises(InvalidInputError, match="namespace"):
            await Agent("other").elsewhere(namespace="No!").__aenter__()
        await app.memory.set("k", 1)
        assert await other.get("k") is None


async def test_how_long_the_end_may_take_can_be_said(app: Agent, server: NatsServer, namespace: str) -> None:
    ended: list[bool] = []

    @app.memory.on_change("k")
    async def hang(event: Event) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    begun = asyncio.Event()
    async with app.elsewhere(server.url, namespace=namespace):
        await app.__aenter__()
        await app.memory.set("k", 1)
        await begun.wait()
        async with asyncio.timeout(5):
            await app.aclose(grace=0.1)
    assert ended == [True]
