"""While two versions of an agent run at once, as in a rolling deployment, what one of them can do is done."""

import pytest

from agentfield import Agent, Event, InvalidInputError, NotFoundError
from agentfield.fabric.calling import calls
from agentfield.testing import settled
from tests.support import NatsServer


def older(server: NatsServer, namespace: str, heard: list[str]) -> Agent:
    agent = Agent("shop", nats_url=server.url, namespace=namespace)

    @agent.reasoner()
    async def price(item: str) -> str:
        return f"older: {item}"

    @agent.reasoner()
    async def stock() -> str:
        return "older"

    @agent.memory.on_change("order_*")
    async def react(event: Event) -> None:
        heard.append(event.key)

    return agent


def newer(server: NatsServer, namespace: str, heard: list[str]) -> Agent:
    agent = Agent("shop", nats_url=server.url, namespace=namespace)

    @agent.reasoner()
    async def price(item: str, currency: str) -> str:
        return f"newer: {item} in {currency}"

    @agent.reasoner()
    async def deliver() -> str:
        return "newer"

    @agent.memory.on_change(["order_*", "cart_*"])
    async def react(event: Event) -> None:
        heard.append(event.key)

    return agent


async def test_a_call_finds_an_instance_of_the_version_that_takes_it(
    server: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = Agent("caller", nats_url=server.url, namespace=namespace)
    async with older(server, namespace, []), newer(server, namespace, []), caller:
        for _ in range(8):
            assert await caller.call("shop.price", item="tea") == "older: tea"
            assert await caller.call("shop.price", item="tea", currency="EUR") == "newer: tea in EUR"
            assert await caller.call("shop.stock") == "older"
            assert await caller.call("shop.deliver") == "newer"
        # However many of those that are asked by chance are of the other version.
        monkeypatch.setattr(calls, "_ASKED", 1)
        for _ in range(5):
            assert await caller.call("shop.price", item="tea") == "older: tea"
            assert await caller.call("shop.price", item="tea", currency="EUR") == "newer: tea in EUR"
        with pytest.raises(InvalidInputError, match="'colour' is not one of its parameters"):
            await caller.call("shop.price", item="tea", colour="green")
        with pytest.raises(NotFoundError, match="has no reasoner 'refund'"):
            await caller.call("shop.refund")


async def test_every_event_that_either_version_hears_is_handled_once(server: NatsServer, namespace: str) -> None:
    first: list[str] = []
    second: list[str] = []
    caller = Agent("caller", nats_url=server.url, namespace=namespace)
    old, new = older(server, namespace, first), newer(server, namespace, second)
    async with caller, old, new:
        for number in range(20):
            await caller.memory.set(f"order_{number}", number, scope="global")
            await caller.memory.set(f"cart_{number}", number, scope="global")
        await settled(old, new)
    assert sorted(first + second) == sorted(f"{kind}_{number}" for kind in ("cart", "order") for number in range(20))
    assert not any(key.startswith("cart") for key in first)
